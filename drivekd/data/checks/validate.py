"""Looks at every record and decodes every picture of a file before a run does, and reports all that is wrong, by kind.

A problem stops a run or teaches the model a fault (a bad record, a missing or broken picture, a malformed tag, an answer that was
cut); a warning may be meant (a duplicate, a question answered in two ways, two camera orders). The file is read once, one record
in memory at a time: of a question stay 16 bytes, of a picture 8, and of each kind of finding the first places.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drivekd.data.readers import ParsedRecord, Problem, SampleFile
from drivekd.errors import DataError
from drivekd.sample import CAPABILITIES, Capability, Sample
from drivekd.tags import CoordinateStyle, StyleVote

from .camera_orders import CameraOrders
from .findings import PLACES, Findings, Tally
from .picture_files import PictureFiles
from .repeats import RepeatCollector, Repeats
from .texts import answer_findings, is_unfinished, tag_findings
from .tokens import TokenCheck

STYLES: tuple[CoordinateStyle, ...] = ("normalized", "pixel")
WARNINGS = ("answer names no option", "mixed coordinates", "answer longer than its budget")
_MIN_ENDS, _MAX_UNFINISHED = 20, 0.05  # "perhaps cut": of so many long answers no more than this share end without a full stop


@dataclass(frozen=True)
class ValidationReport:
    """problems, warnings: by kind. counts: sound questions by (capability, answer form).

    records: all of the file's; images: distinct picture files, None when they were not looked at; coordinates: how the file
    writes its tags. faulty: places of records (from 0) that have a problem; bad_pictures: hashes of paths; repeated: places of
    samples that only repeat an earlier one.
    """

    path: Path
    format: str
    records: int
    images: int | None
    coordinates: CoordinateStyle
    problems: tuple[Tally, ...]
    warnings: tuple[Tally, ...]
    counts: Mapping[tuple[str, str], int]
    faulty: frozenset[int] = frozenset()
    bad_pictures: frozenset[int] = frozenset()
    repeated: frozenset[int] = frozenset()

    @property
    def ok(self) -> bool:
        """Whether the file can be trained on; warnings do not count."""
        return not self.problems

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(what, how many), for a table."""
        return (
            (f"records ({self.format})", f"{self.records:,}"),
            *((f"  {capability}, {form}", f"{count:,}") for (capability, form), count in self.counts.items()),
            ("images", "not looked at" if self.images is None else f"{self.images:,}"),
            ("coordinates of tags", self.coordinates),
            ("problems", f"{sum(tally.count for tally in self.problems):,}"),
            ("warnings", f"{sum(tally.count for tally in self.warnings):,}"),
        )

    def to_json(self) -> dict[str, object]:
        """As `drivekd data validate --json` prints it."""
        return {
            "file": str(self.path),
            "format": self.format,
            "ok": self.ok,
            "records": self.records,
            "images": self.images,
            "coordinates": self.coordinates,
            "questions": {f"{capability}/{form}": count for (capability, form), count in self.counts.items()},
            "problems": [tally.to_json() for tally in self.problems],
            "warnings": [tally.to_json() for tally in self.warnings],
        }


def validate_file(
    path: Path,
    *,
    image_root: Path | None = None,
    unlabelled: bool = False,
    checkpoint: Path | None = None,
    capability: Capability | None = None,
    frames: Path | None = None,
    skip_images: bool = False,
) -> ValidationReport:
    """Check a file of any known format and all its pictures.

    checkpoint: its tokenizer is asked which texts hold chat markers, its contract how long answers may be. skip_images: pictures
    are not looked at. Raises nothing for bad data: an unreadable file is one problem. Raises CheckpointError.
    """
    tokens = TokenCheck(checkpoint) if checkpoint else None
    try:
        file = SampleFile(path, image_root=image_root, unlabelled=unlabelled, capability=capability, frames=frames)
    except DataError as error:
        return ValidationReport(path, "unknown", 0, None, "normalized", (Tally("file", 1, (str(error),)),), (), {})
    look = _Look(tokens, skip_images)
    try:
        for record in file.as_written():
            look.at(record)
    except DataError as error:
        look.problems.add("file", str(error))
    finally:
        look.finish()
    return look.report(file)


class _Look:
    """One pass over a file."""

    def __init__(self, tokens: TokenCheck | None, skip_images: bool) -> None:
        self.problems, self.warnings = Findings(), Findings()
        self._tokens = tokens
        self._of_tags = {style: (Findings(), Findings(), array("q")) for style in STYLES}
        self._unfinished = Findings()
        self._num_ends = 0
        self._vote, self._orders, self._repeats = StyleVote(), CameraOrders(), RepeatCollector()
        self._pictures = None if skip_images else PictureFiles(self.problems.add)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._records = self._samples = 0
        self._faulty = array("q")

    def at(self, record: ParsedRecord) -> None:
        """Look at the next record."""
        self._add_all(record.problems)
        for note in record.notes:
            self.warnings.add(note, record.source)
        for sample in record.samples:
            self._at_sample(sample)
        if record.problems:
            self._faulty.append(self._records)
        self._records += 1

    def _add_all(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.problems.add(problem.kind, problem.text)

    def _at_sample(self, sample: Sample) -> None:
        self._counts[sample.capability, sample.answer_form] += 1
        self._samples += 1
        self._repeats.add(sample)
        self._orders.add(sample)
        if (wrong := self._orders.contradiction(sample)) is not None:
            self.warnings.add("camera contradicts the picture's name", wrong)
        if self._pictures is not None:
            self._pictures.look(sample)
        answer = sample.answer or ""
        if "<" in sample.question or "<" in answer:
            self._vote.add(sample.question, answer)
            for style, (problems, warnings, faulty) in self._of_tags.items():
                self._note(sample, tag_findings(sample, style), problems, warnings, faulty)
        self._note(sample, answer_findings(sample), self.problems, self.warnings, self._faulty)
        if self._tokens is not None:
            self._note(sample, self._tokens.findings(sample), self.problems, self.warnings, self._faulty)
        if sample.answer_form == "open" and len(answer) > 30:
            self._num_ends += 1
            if is_unfinished(answer):
                self._unfinished.add("perhaps cut", f"{sample.source}: answer: ends without a full stop: ...{answer[-40:]!r}")

    def _note(
        self, sample: Sample, found: Iterable[tuple[str, str]], problems: Findings, warnings: Findings, faulty: array[int]
    ) -> None:
        for kind, text in found:
            if kind in WARNINGS:
                warnings.add(kind, f"{sample.source}: {text}")
            else:
                problems.add(kind, f"{sample.source}: {text}")
                faulty.append(self._records)

    def finish(self) -> None:
        """Wait for pictures that are under way."""
        if self._pictures is not None:
            self._pictures.close()

    def report(self, file: SampleFile) -> ValidationReport:
        """What was found."""
        style = self._vote.style
        problems, warnings, faulty = self._of_tags[style]
        self.problems.extend(problems)
        self.warnings.extend(warnings)
        for text, count in self._orders.findings():
            self.warnings.add("two camera orders", text, count)
        for tally in self._unfinished.tallies():
            if self._num_ends >= _MIN_ENDS and tally.count <= _MAX_UNFINISHED * self._num_ends:
                self.warnings.extend(self._unfinished)
        repeats = self._repeats.repeats()
        _add_repeats(self.warnings, repeats, file)
        return ValidationReport(
            path=file.path,
            format=file.format,
            records=self._records,
            images=None if self._pictures is None else self._pictures.count,
            coordinates=style,
            problems=self.problems.tallies(),
            warnings=self.warnings.tallies(),
            counts=_ordered(self._counts),
            faulty=frozenset(self._faulty) | frozenset(faulty),
            bad_pictures=frozenset(self._pictures.bad if self._pictures else ()),
            repeated=frozenset(repeats.duplicates[:, 0].tolist()),
        )


def _add_repeats(warnings: Findings, repeats: Repeats, file: SampleFile) -> None:
    kinds = (
        ("duplicate record", "duplicate of", repeats.duplicates),
        ("two answers", "another answer than", repeats.contradictions),
    )
    wanted = {int(place) for *_, pairs in kinds for place in pairs[:PLACES].ravel()}
    sources = _sources(file, wanted)
    for kind, words, pairs in kinds:
        texts = [f"{sources[int(again)]}: {words} {sources[int(first)]}" for again, first in pairs[:PLACES]]
        for place, text in enumerate(texts):
            warnings.add(kind, text, 1 if place + 1 < len(texts) else len(pairs) - len(texts) + 1)


def _sources(file: SampleFile, wanted: set[int]) -> dict[int, str]:
    """Where the samples of these places stand; reads the file again, up to the last of them."""
    found: dict[int, str] = {}
    place = 0
    for record in file.as_written() if wanted else ():
        for sample in record.samples:
            if place in wanted:
                found[place] = sample.source
                if len(found) == len(wanted):
                    return found
            place += 1
    return found


def _ordered(counts: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    order = sorted(counts, key=lambda key: (CAPABILITIES.index(key[0]), key[1]))
    return {key: counts[key] for key in order}
