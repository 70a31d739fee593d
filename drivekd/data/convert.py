"""DriveLM and DriveBench files become Drive-KD records.

Choices made here: prediction and behavior are Drive-KD's reasoning; the original type stays in meta.topic. A question
that names cameras in its tags is shown those alone, else all six, in the order of CAMERAS. Pixel tags become normalised,
decided for the file; malformed tags are counted and kept verbatim. A question without an answer becomes an unlabelled
record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from drivekd.data.answer_forms import infer_answer_form
from drivekd.data.drivekd_records import IMAGE_MARKER
from drivekd.data.foreign import ForeignRecord, detect_format
from drivekd.data.json_file import read_json, write_json
from drivekd.data.readers import foreign_records
from drivekd.errors import DataError, UsageError
from drivekd.sample import CAMERAS, Capability
from drivekd.tags import CoordinateStyle, cameras_named, coordinate_style, malformed_tags, normalize_tags

SourceFormat = Literal["drivelm", "drivebench", "auto"]
CAPABILITY_OF_TOPIC: Mapping[str, Capability] = {
    "perception": "perception",
    "prediction": "reasoning",
    "planning": "planning",
    "behavior": "reasoning",
}


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    by_question_type: records by Drive-KD's types; by_topic: by the source's. missing_images: distinct files not there.
    """

    source: Path
    out: Path
    format: Literal["drivelm", "drivebench"]
    records: int
    by_question_type: Mapping[str, int]
    by_topic: Mapping[str, int]
    unlabelled: int
    malformed_tags: int
    coordinates: CoordinateStyle
    missing_images: int

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(what, how many), for a table."""
        return (
            (f"records from {self.format}", str(self.records)),
            *((f"  {question_type}", str(count)) for question_type, count in sorted(self.by_question_type.items())),
            ("without an answer", str(self.unlabelled)),
            ("coordinates of tags in the source", self.coordinates),
            ("malformed tags, kept as they are", str(self.malformed_tags)),
            ("missing image files", str(self.missing_images)),
        )


def convert_file(source: Path, out: Path, *, format: SourceFormat = "auto", image_root: Path | None = None) -> ConvertReport:
    """Write `source` as Drive-KD records to `out`, whole or not at all; `read_samples(out)` reads it back.

    image_root: the folder that the image paths start from, the source's own folder when None; leading parts of the
    paths ("../nuscenes", "data") are dropped where that is what makes the first image exist.
    Raises DataError, UsageError.
    """
    if format not in ("drivelm", "drivebench", "auto"):
        raise UsageError(f"format: expected drivelm, drivebench or auto, found {format!r}")
    document = read_json(source)
    found = detect_format(document, source) if format == "auto" else format
    records = foreign_records(document, source, found)
    if not records:
        raise DataError(f"{source}: the file holds no questions")
    assert found in ("drivelm", "drivebench")
    style = coordinate_style(text for record in records for text in (record.question, record.answer))
    images = ImageFinder(records, source.parent if image_root is None else image_root)
    converted = [_drivekd_record(record, style, images, out.parent) for record in records]
    write_json(out, converted)
    return ConvertReport(
        source=source,
        out=out,
        format=found,
        records=len(records),
        by_question_type=dict(Counter(CAPABILITY_OF_TOPIC[record.topic] for record in records)),
        by_topic=dict(Counter(record.topic for record in records)),
        unlabelled=sum(not record.answer for record in records),
        malformed_tags=sum(len(malformed_tags(text, style)) for r in records for text in (r.question, r.answer)),
        coordinates=style,
        missing_images=images.num_missing(),
    )


class ImageFinder:
    """Turns the image paths of one foreign file into paths here; decides once for the file how many leading parts to drop."""

    def __init__(self, records: Sequence[ForeignRecord], root: Path) -> None:
        self._root = root.absolute()
        self._num_dropped = 0
        self._exists: dict[Path, bool] = {}
        parts = PurePosixPath(next(iter(records[0].image_paths.values()))).parts if records else ()
        for num_dropped in range(len(parts)):
            if self._root.joinpath(*parts[num_dropped:]).is_file():
                self._num_dropped = num_dropped
                break

    def find(self, path: str) -> Path:
        """The file that `path` means; it need not exist."""
        image = self._root.joinpath(*PurePosixPath(path).parts[self._num_dropped :])
        if image not in self._exists:
            self._exists[image] = image.is_file()
        return image

    def num_missing(self) -> int:
        """Number of distinct files asked for that do not exist."""
        return sum(not exists for exists in self._exists.values())


def _drivekd_record(record: ForeignRecord, style: CoordinateStyle, images: ImageFinder, folder: Path) -> dict[str, object]:
    cameras = _cameras(record)
    question = normalize_tags(record.question, style)
    messages = [{"role": "user", "content": IMAGE_MARKER * len(cameras) + question}]
    if record.answer:
        messages.append({"role": "assistant", "content": normalize_tags(record.answer, style)})
    return {
        "messages": messages,
        "images": [_written_path(images.find(record.image_paths[camera]), folder) for camera in cameras],
        "question_type": CAPABILITY_OF_TOPIC[record.topic],
        "meta": {
            "kind": infer_answer_form(record.question, record.answer or None),
            "topic": record.topic,
            "scene": record.scene,
            "frame": record.frame,
            "cameras": list(cameras),
        },
    }


def _cameras(record: ForeignRecord) -> tuple[str, ...]:
    cameras = cameras_named(record.question) or CAMERAS
    missing = [camera for camera in cameras if camera not in record.image_paths]
    if missing:
        raise DataError(f"{record.source}: image_paths: the question needs {', '.join(missing)}, which is not there")
    return cameras


def _written_path(image: Path, folder: Path) -> str:
    """Relative to the written file where the image lies below it, so that both can move together; else absolute."""
    absolute = folder.absolute()
    return (image.relative_to(absolute) if image.is_relative_to(absolute) else image).as_posix()
