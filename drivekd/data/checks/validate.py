"""Looks at every record and decodes every image of a Drive-KD file before a run does, and reports all that is wrong.

A problem stops a run or teaches the model a fault (a bad record, a missing or broken image, a malformed tag); a warning
may be meant (a duplicate, a question answered in two ways).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from drivekd.data.readers import SampleFile
from drivekd.errors import DataError
from drivekd.images import load_image
from drivekd.sample import CAPABILITIES, Sample
from drivekd.tags import CoordinateStyle, coordinate_style, malformed_tags

_THREADS = 8  # decoding releases the GIL; network disks gain from more threads than cores


@dataclass(frozen=True)
class ValidationReport:
    """problems, warnings: each as "FILE, record N: ...". counts: sound records by (capability, answer form).

    records: all of them; images: distinct image files; coordinates: how the file writes its tags.
    """

    path: Path
    records: int
    images: int
    coordinates: CoordinateStyle
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    counts: Mapping[tuple[str, str], int]

    @property
    def ok(self) -> bool:
        """Whether the file can be trained on; warnings do not count."""
        return not self.problems

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(what, how many), for a table."""
        return (
            ("records", str(self.records)),
            *((f"  {capability}, {form}", str(count)) for (capability, form), count in self.counts.items()),
            ("images", str(self.images)),
            ("coordinates of tags", self.coordinates),
            ("problems", str(len(self.problems))),
            ("warnings", str(len(self.warnings))),
        )


def validate_file(path: Path, *, image_root: Path | None = None, unlabelled: bool = False) -> ValidationReport:
    """Check a Drive-KD file and all its images. Raises nothing for bad data: an unreadable file is one problem."""
    try:
        parsed = list(SampleFile(path, image_root=image_root, unlabelled=unlabelled).as_written())
    except DataError as error:
        return ValidationReport(path, 0, 0, "normalized", (str(error),), (), {})
    samples = [sample for record in parsed for sample in record.samples]
    style = coordinate_style(text for sample in samples for text in _texts(sample))
    users = _first_users(samples)
    problems = [str(problem) for record in parsed for problem in record.problems]
    problems += _tag_problems(samples, style)
    problems += _image_problems(users)
    return ValidationReport(
        path=path,
        records=len(parsed),
        images=len(users),
        coordinates=style,
        problems=tuple(problems),
        warnings=tuple(_repeat_warnings(samples)),
        counts=_counts(samples),
    )


def _texts(sample: Sample) -> tuple[str, str]:
    return sample.question, sample.answer or ""


def _first_users(samples: Iterable[Sample]) -> dict[Path, str]:
    """Each distinct image with the source of the first record that shows it."""
    users: dict[Path, str] = {}
    for sample in samples:
        for image in sample.images:
            users.setdefault(image, sample.source)
    return users


def _image_problems(users: dict[Path, str]) -> list[str]:
    """Decode every image once, on threads."""
    with ThreadPoolExecutor(_THREADS) as pool:
        faults = list(pool.map(_image_fault, users))
    return [f"{source}: images: {fault}" for source, fault in zip(users.values(), faults, strict=True) if fault]


def _image_fault(image: Path) -> str | None:
    try:
        load_image(image)
    except DataError as error:
        return str(error)
    return None


def _tag_problems(samples: Sequence[Sample], style: CoordinateStyle) -> list[str]:
    expected = "0..1" if style == "normalized" else "pixels of 1600x900"
    return [
        f"{sample.source}: {field}: malformed tag {piece!r} (expected <cN,CAMERA,x,y> with x, y in {expected})"
        for sample in samples
        for field, text in zip(("question", "answer"), _texts(sample), strict=True)
        for piece in malformed_tags(text, style)
    ]


def _repeat_warnings(samples: Iterable[Sample]) -> list[str]:
    first: dict[tuple[str, tuple[Path, ...]], Sample] = {}
    warnings = []
    for sample in samples:
        earlier = first.setdefault((sample.question, sample.images), sample)
        if earlier is not sample:
            what = "duplicate of" if earlier.answer == sample.answer else "another answer than"
            warnings.append(f"{sample.source}: {what} {earlier.source}")
    return warnings


def _counts(samples: Iterable[Sample]) -> dict[tuple[str, str], int]:
    counts = Counter((sample.capability, sample.answer_form) for sample in samples)
    order = sorted(counts, key=lambda key: (CAPABILITIES.index(key[0]), key[1]))
    return {key: counts[key] for key in order}
