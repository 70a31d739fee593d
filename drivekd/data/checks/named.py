"""Everything by which a file of any format could be known again: its scenes, frames, pictures and questions. Read leniently: a
record that training would refuse still leaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drivekd.data.readers import ParsedRecord, SampleFile
from drivekd.data.readers.formats import detect
from drivekd.data.readers.json_stream import elements, member_elements, members
from drivekd.data.readers.pictures import PictureFinder
from drivekd.data.traces import text_hash
from drivekd.tags import coordinate_style, normalize_tags


@dataclass
class Named:
    """questions: hash -> text. pictures: resolved paths; they need not exist."""

    scenes: set[str] = field(default_factory=set)
    frames: set[str] = field(default_factory=set)
    pictures: set[Path] = field(default_factory=set)
    questions: dict[int, str] = field(default_factory=dict)

    def add(self, scene: object = "", frame: object = "", question: object = "") -> None:
        """Add what is a text and not empty."""
        for value, known in ((scene, self.scenes), (frame, self.frames)):
            if isinstance(value, str) and value:
                known.add(value)
        if isinstance(question, str) and question.strip():
            self.questions.setdefault(text_hash(question.strip()), question.strip())


def read_named(path: Path, image_root: Path | None) -> Named:
    """Raises DataError for a file that is unreadable or of no known format."""
    found = detect(path)
    named = Named()
    finder = PictureFinder(path.parent if image_root is None else image_root)
    if found in ("drivelm", "visual_description"):
        _add_scenes(named, path, finder)
    elif found == "nuscenes-qa":
        for element in member_elements(path, "questions"):
            record = element.value if isinstance(element.value, dict) else {}
            named.add(frame=record.get("sample_token"), question=record.get("question"))
    elif found == "predictions":
        for element in elements(path):
            record = element.value if isinstance(element.value, dict) else {}
            scene, _, rest = str(record.get("id", "")).partition("_")
            named.add(scene, rest.rpartition("_")[0], str(record.get("question", "")).replace("<image>", ""))
    else:
        file = SampleFile(path, image_root=image_root, unlabelled=True, capability="perception")
        for parsed in file.as_written():
            _add_record(named, parsed, finder)
    named.pictures = {picture.resolve() for picture in named.pictures}
    _normalize(named)
    return named


def _normalize(named: Named) -> None:
    """A question in pixels is the same question as with tags between 0 and 1."""
    if coordinate_style(named.questions.values()) == "pixel":
        questions = [normalize_tags(question, "pixel") for question in named.questions.values()]
        named.questions = {text_hash(question): question for question in questions}


def _add_scenes(named: Named, path: Path, finder: PictureFinder) -> None:
    """DriveLM's nesting: every picture of a frame counts, whichever its questions show."""
    for scene, value in members(path):
        named.add(scene)
        for frame, fields in _items(value.get("key_frames") if isinstance(value, dict) else None):
            named.add(frame=frame)
            inner = fields if isinstance(fields, dict) else {}
            _add_paths(named, inner.get("image_paths"), finder)
            for _, pairs in _items(inner.get("QA")):
                for pair in pairs if isinstance(pairs, list) else ():
                    named.add(question=pair.get("Q") if isinstance(pair, dict) else "")


def _add_record(named: Named, record: ParsedRecord, finder: PictureFinder) -> None:
    for sample in record.samples:
        named.add(sample.scene, sample.frame, sample.question)
        named.pictures.update(sample.images)
    raw = record.raw if isinstance(record.raw, dict) else {}
    if not record.samples:
        meta = raw.get("meta") if isinstance(raw.get("meta"), dict) else {}
        assert isinstance(meta, dict)
        named.add(raw.get("scene_token", meta.get("scene")), raw.get("frame_token", meta.get("frame")), raw.get("question"))
        _add_paths(named, raw.get("images", raw.get("image")), finder)
    _add_paths(named, raw.get("image_path"), finder)


def _add_paths(named: Named, value: object, finder: PictureFinder) -> None:
    paths = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    named.pictures.update(finder.find(path) for path in paths if isinstance(path, str) and path)


def _items(value: object) -> Iterator[tuple[str, object]]:
    yield from value.items() if isinstance(value, dict) else ()
