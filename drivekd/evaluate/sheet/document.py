"""A score sheet as blocks, made once from one report. Markdown and HTML draw the same blocks, so their numbers are the same.

Every text in a block is plain: what it means to HTML or Markdown is the renderer's concern, and so no answer of a model can be
more than text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from drivekd.sample import Capability

Interval: TypeAlias = tuple[float, float]
MarkOf: TypeAlias = Literal["question", "reference", "model"]
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Facts:
    """What and its value, a line each."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Note:
    """A sentence. warning: what a reader must not miss."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """header and rows of cells; the first `labels` columns are words, the others numbers. caption: what is shown, with units.
    separate: from this column on it is another kind of number, such as a judge's; None = all alike."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    separate: int | None = None


@dataclass(frozen=True)
class Whisker:
    """A measured share with its interval, beside what guessing gets. All from 0 to 1; None = not known. level: 0 stands out, 1 is
    a part of the one above."""

    label: str
    n: int
    value: float
    interval: Interval
    majority: float | None = None
    random: float | None = None
    level: int = 0


@dataclass(frozen=True)
class Whiskers:
    """Dots with whiskers, one a row, on one axis from 0 to 1."""

    caption: str
    rows: tuple[Whisker, ...]


@dataclass(frozen=True)
class Differences:
    """As Whiskers, for differences between two runs: an axis around 0, from -1 to 1. majority and random are not shown."""

    caption: str
    rows: tuple[Whisker, ...]


@dataclass(frozen=True)
class Heat:
    """A table of shares that are coloured by their size; None = nothing measured. signed: differences, coloured by sign."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    signed: bool = False


@dataclass(frozen=True)
class Confusion:
    """counts[true][predicted]; the last column may be "unparsed"."""

    caption: str
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers of like confidence: how sure they were on average, how many of them were right, how many there are."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy; on the diagonal, confidence means what it says."""

    caption: str
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Mark:
    """A point of an object tag, 0 to 1 of its picture. of: whose words hold it."""

    label: str
    x: float
    y: float
    of: MarkOf


@dataclass(frozen=True)
class Picture:
    """A camera's picture beside a case. jpeg: None where it cannot be shown, then `problem` says why."""

    camera: str
    path: str
    width_px: int = 0
    height_px: int = 0
    jpeg: bytes | None = None
    problem: str = ""
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Who answered what. verdict: right or wrong and why, in words; good: None where nobody can say."""

    who: str
    text: str
    verdict: str
    good: bool | None


@dataclass(frozen=True)
class Case:
    """One question with its pictures. source: the record; where: scene and frame."""

    source: str
    where: str
    capability: Capability
    topic: str
    question: str
    reference: str
    answers: tuple[Answer, ...]
    pictures: tuple[Picture, ...] = ()


Block: TypeAlias = Facts | Note | Table | Whiskers | Differences | Heat | Confusion | Reliability | Case


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """title: of the whole. summary: one sentence under it."""

    title: str
    summary: str
    sections: tuple[Section, ...] = field(default=())


def section(title: str, blocks: Sequence[Block | None]) -> Section | None:
    """A section of the blocks that are there; None when none is."""
    there = tuple(block for block in blocks if block is not None)
    return Section(title, there) if there else None


def printable(text: str) -> str:
    """As a file can hold it and a terminal shows it: "?" for half an emoji, U+FFFD for control signs and for those that turn the
    direction of writing."""
    return _UNPRINTABLE.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))


def share(value: float | None) -> str:
    """A share as every table writes it: three digits; a dash for None."""
    return "-" if value is None else f"{value:.3f}"


def signed_share(value: float | None) -> str:
    """A difference of shares, always with its sign."""
    return "-" if value is None else f"{value:+.3f}"


def interval_text(interval: Interval | None, *, signed: bool = False) -> str:
    """Both ends of an interval."""
    if interval is None:
        return "-"
    low, high = interval
    return f"{low:+.3f} to {high:+.3f}" if signed else f"{low:.3f}-{high:.3f}"
