"""A file of one format becomes a file of another, record by record.

Prediction and behavior are Drive-KD's reasoning; the original type stays in meta.topic. Pixel tags become normalised, decided for
the file; malformed tags are counted and kept verbatim. A question without an answer becomes an unlabelled record.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from drivekd.data.readers import ParsedRecord, SampleFile
from drivekd.data.traces import text_hash
from drivekd.errors import DataError, UsageError
from drivekd.sample import CAPABILITIES, Capability, Sample
from drivekd.tags import CoordinateStyle, malformed_tags

from .records import are_lines, drivekd_record, write_document, write_records
from .targets import drivebench_record, drivelm_document, llama_factory_record, ms_swift_record

Target = Literal["drivekd", "llama-factory", "ms-swift", "drivebench", "drivelm"]
TARGETS: tuple[Target, ...] = get_args(Target)
_RECORDS = {
    "drivekd": drivekd_record,
    "llama-factory": llama_factory_record,
    "ms-swift": ms_swift_record,
    "drivebench": drivebench_record,
}


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    format: of the source. records: questions written. by_question_type: of them, by Drive-KD's types; by_topic: by the source's.
    missing_images: distinct files not there. notes: what was changed on the way, by kind. left_out: records with problems, by
    kind.
    """

    source: Path
    out: Path
    format: str
    to: Target
    records: int
    by_question_type: Mapping[str, int]
    by_topic: Mapping[str, int]
    unlabelled: int
    malformed_tags: int
    coordinates: CoordinateStyle
    missing_images: int
    notes: Mapping[str, int]
    left_out: Mapping[str, int]

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(what, how many), for a table."""
        return (
            (f"records from {self.format}", f"{self.records:,}"),
            *((f"  {question_type}", f"{count:,}") for question_type, count in sorted(self.by_question_type.items())),
            ("without an answer", f"{self.unlabelled:,}"),
            ("coordinates of tags in the source", self.coordinates),
            ("malformed tags, kept as they are", f"{self.malformed_tags:,}"),
            ("missing image files", f"{self.missing_images:,}"),
            *((note, f"{count:,}") for note, count in self.notes.items()),
            *((f"left out: {kind}", f"{count:,}") for kind, count in self.left_out.items()),
        )


@dataclass
class _Counts:
    style: CoordinateStyle
    records: int = 0
    question_types: Counter[str] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    malformed: int = 0
    images: set[int] = field(default_factory=set)  # hashes: a million paths would be the largest thing here
    missing: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, sample: Sample) -> None:
        self.records += 1
        self.question_types[sample.capability] += 1
        self.topics[sample.topic] += 1
        self.unlabelled += sample.answer is None
        for image in sample.images:
            if (known := text_hash(str(image))) not in self.images:
                self.images.add(known)
                self.missing += not os.path.isfile(image)


def convert_file(
    source: Path,
    out: Path,
    *,
    to: Target = "drivekd",
    image_root: Path | None = None,
    capability: Capability | None = None,
    frames: Path | None = None,
    skip: bool = False,
) -> ConvertReport:
    """Write the questions of `source`, of any known format, to `out`, whole or not at all; `read_samples(out)` reads them back.

    image_root: the folder that the image paths start from, the source's own folder when None; leading parts of the paths
    ("../nuscenes", "data") are dropped where that is what makes the first image exist. capability: of records that name none.
    frames: which pictures a frame has, for NuScenes-QA. skip: leave out records with problems, counted; else the first is raised.
    Raises DataError, UsageError.
    """
    if to not in TARGETS:
        raise UsageError(f"to: expected one of {', '.join(TARGETS)}, found {to!r}")
    if capability is not None and capability not in CAPABILITIES:
        raise UsageError(f"capability: expected one of {', '.join(CAPABILITIES)}, found {capability!r}")
    file = SampleFile(source, image_root=image_root, unlabelled=True, capability=capability, frames=frames)
    if out.exists() and out.samefile(source):
        raise UsageError(f"{out}: --out is the source itself; name another file")
    if to == "drivelm" and are_lines(out.name):
        raise UsageError(
            f"{out}: DriveLM is one nested document, no lines of records; give a name that ends in .json or .json.gz"
        )
    counts = _Counts(file.coordinates)
    converted = _converted(file, counts, skip)
    if to == "drivelm":
        document = drivelm_document((sample for sample, _ in converted), out.parent)
        _refuse_nothing(counts, source)
        write_document(out, document)
    else:
        make = _RECORDS[to]
        write_records(out, _checked((make(sample, out.parent, raw) for sample, raw in converted), counts, source))
    return ConvertReport(
        source=source,
        out=out,
        format=file.format,
        to=to,
        records=counts.records,
        by_question_type=dict(counts.question_types),
        by_topic=dict(counts.topics),
        unlabelled=counts.unlabelled,
        malformed_tags=counts.malformed,
        coordinates=file.coordinates,
        missing_images=counts.missing,
        notes=dict(counts.notes),
        left_out=dict(counts.left_out),
    )


def _converted(file: SampleFile, counts: _Counts, skip: bool) -> Iterator[tuple[Sample, object]]:
    """Every sample with the raw record that it stands for alone (None where a record became several)."""
    for record in file.records():
        if record.problems:
            _refuse(record, skip)
            counts.left_out[record.problems[0].kind] += 1
        counts.notes.update(record.notes)
        for sample in record.samples:
            counts.add(sample)
            counts.malformed += sum(len(malformed_tags(text, "normalized")) for text in (sample.question, sample.answer or ""))
            yield sample, record.raw if len(record.samples) == 1 else None


def _refuse(record: ParsedRecord, skip: bool) -> None:
    if not skip:
        raise DataError(f"{record.problems[0]}; drivekd data validate names every problem of the file")


def _checked(records: Iterator[dict[str, Any]], counts: _Counts, source: Path) -> Iterator[dict[str, Any]]:
    yield from records
    _refuse_nothing(counts, source)


def _refuse_nothing(counts: _Counts, source: Path) -> None:
    if not counts.records:
        raise DataError(f"{source}: the file holds no questions")
