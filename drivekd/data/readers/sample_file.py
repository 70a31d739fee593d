"""One file of records in any known format: `read_samples` for whoever wants all of them, SampleFile to stream.

Object tags in pixels of 1600x900 become normalised in Samples; which of both a file writes is decided once for all of it, so a
streamed file is read twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from drivekd.errors import DataError
from drivekd.log import logger
from drivekd.sample import Capability, Sample
from drivekd.tags import CoordinateStyle, StyleVote, normalize_tags

from .drivebench import parse_drivebench
from .drivelm import drivelm_records
from .formats import Format, detect
from .frames import Frames, read_frames
from .json_stream import Element, elements
from .messages import Reading, parse_messages
from .nuscenes_qa import nuscenes_qa_records
from .pictures import PictureFinder
from .problem import Faults, NoteKind, ParsedRecord, Problem

_NO_RECORDS = {
    "predictions": "holds a model's predictions (id, question, answer), no records; its texts are scored, not read as data",
    "visual_description": "holds DriveBench's descriptions of objects, no questions",
}


@dataclass(frozen=True)
class ReadSummary:
    """What a file held. records: as the file counts them; samples: what they became, the unlabelled of them among it; skipped:
    records left out, by kind of problem; notes: what was changed on the way, by kind."""

    format: Format
    coordinates: CoordinateStyle
    records: int
    samples: int
    unlabelled: int
    skipped: Mapping[str, int]
    notes: Mapping[NoteKind, int]


class SampleFile:
    """A file of records. image_root: what picture paths start from, the file's own folder when None. unlabelled: a record without
    an answer is a Sample with answer None. capability: of records that name none. frames: a file that says which pictures a frame
    has, for formats that name frames alone.

    Raises DataError for a file that is unreadable, of no known format, or holds no questions.
    """

    def __init__(
        self,
        path: Path,
        *,
        image_root: Path | None = None,
        unlabelled: bool = False,
        capability: Capability | None = None,
        frames: Path | None = None,
    ) -> None:
        found = detect(path)
        assert found is not None
        if found in _NO_RECORDS:
            raise DataError(f"{path}: {_NO_RECORDS[found]}")
        if found == "nuscenes-qa" and frames is None:
            raise DataError(
                f"{path}: NuScenes-QA names frames and no pictures; say which pictures a frame has: "
                "drivekd data convert --frames FILE, a DriveLM file or nuScenes' sample_data.json"
            )
        self.path = path
        self.format: Format = found
        drop = found != "messages" or image_root is not None
        pictures = PictureFinder((path.parent if image_root is None else image_root), drop=drop)
        self._reading = Reading(pictures, unlabelled, capability)
        self._frames_file = frames

    def as_written(self) -> Iterator[ParsedRecord]:
        """Every record with its own problems, tags as they stand in the file. Raises DataError where the file breaks off."""
        if self.format == "drivelm":
            return drivelm_records(self.path, self._reading)
        if self.format == "nuscenes-qa":
            return nuscenes_qa_records(self.path, self._reading, self._frames)
        return map(self._parsed, elements(self.path))

    def records(self) -> Iterator[ParsedRecord]:
        """Like as_written, with normalised tags."""
        style = self.coordinates
        return self.as_written() if style == "normalized" else (_normalized(record) for record in self.as_written())

    @cached_property
    def coordinates(self) -> CoordinateStyle:
        """How the file writes its tags; reads it once."""
        vote = StyleVote()
        for record in self.as_written():
            for sample in record.samples:
                vote.add(sample.question, sample.answer or "")
        return vote.style

    @cached_property
    def _frames(self) -> Frames:
        assert self._frames_file is not None
        return read_frames(self._frames_file)

    def _parsed(self, element: Element) -> ParsedRecord:
        source = f"{self.path}, record {element.number}"
        if element.fault:
            faults = Faults(source)
            faults.add("no record", element.fault)
            return faults.record((), element.value)  # a leak is looked for in a record that is refused, too
        parse = parse_drivebench if self.format == "drivebench" else parse_messages
        return parse(element.value, source, self._reading)


def read_samples(
    path: Path,
    *,
    image_root: Path | None = None,
    unlabelled: bool = False,
    skip: bool = False,
    capability: Capability | None = None,
    frames: Path | None = None,
) -> list[Sample]:
    """Read a file of any known format; record numbers in messages count from 1. What was changed on the way is logged once.

    Arguments: SampleFile. skip: leave out records with problems, and say how many. Picture files are not opened (see
    `check_images`). Raises DataError naming file, record and field of the first problem, and how many records have one.
    """
    return read_file(path, image_root=image_root, unlabelled=unlabelled, skip=skip, capability=capability, frames=frames)[0]


def read_file(
    path: Path,
    *,
    image_root: Path | None = None,
    unlabelled: bool = False,
    skip: bool = False,
    capability: Capability | None = None,
    frames: Path | None = None,
) -> tuple[list[Sample], ReadSummary]:
    """read_samples with a summary of what the file held."""
    file = SampleFile(path, image_root=image_root, unlabelled=unlabelled, capability=capability, frames=frames)
    samples: list[Sample] = []
    faulty: list[tuple[Problem, ...]] = []
    notes: Counter[NoteKind] = Counter()
    vote, number = StyleVote(), 0
    for number, record in enumerate(file.as_written(), 1):  # noqa: B007  counted
        notes.update(record.notes)
        if record.problems:
            faulty.append(record.problems[:1])
        for sample in record.samples:
            vote.add(sample.question, sample.answer or "")
            samples.append(sample)
    if faulty and not skip:
        more = (
            f" ({len(faulty):,} of {number:,} records have a problem; drivekd data validate names them)"
            if len(faulty) > 1
            else ""
        )
        raise DataError(f"{faulty[0][0]}{more}")
    if not samples:
        raise DataError(f"{path}: the file holds no questions" + (f"; first problem: {faulty[0][0]}" if faulty else ""))
    if vote.style == "pixel":
        samples = [_normalized_sample(sample) for sample in samples]
    skipped: Counter[str] = Counter(problems[0].kind for problems in faulty)
    unlabelled_samples = sum(sample.answer is None for sample in samples)
    summary = ReadSummary(file.format, vote.style, number, len(samples), unlabelled_samples, dict(skipped), dict(notes))
    _tell(path, summary, faulty)
    return samples, summary


def _tell(path: Path, summary: ReadSummary, faulty: list[tuple[Problem, ...]]) -> None:
    for note, count in summary.notes.items():
        logger.warning("%s: %s (%s times)", path, note, f"{count:,}")
    if faulty:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary.skipped.items())
        logger.warning("%s: left out %s of %s records (%s); first: %s", path, len(faulty), summary.records, kinds, faulty[0][0])


def _normalized(record: ParsedRecord) -> ParsedRecord:
    return replace(record, samples=tuple(map(_normalized_sample, record.samples)))


def _normalized_sample(sample: Sample) -> Sample:
    answer = None if sample.answer is None else normalize_tags(sample.answer, "pixel")
    return replace(sample, question=normalize_tags(sample.question, "pixel"), answer=answer)


def check_images(samples: Iterable[Sample]) -> None:
    """Raise DataError naming the first record with an image that does not exist, and how many files are missing."""
    missing: dict[Path, str] = {}
    exists: dict[Path, bool] = {}
    for sample in samples:
        for image in sample.images:
            if image not in exists:
                exists[image] = os.path.isfile(image)
            if not exists[image]:
                missing.setdefault(image, sample.source)
    if missing:
        image, source = next(iter(missing.items()))
        raise DataError(f"{source}: images: no file {image} ({len(missing)} of {len(exists)} image files are missing)")
