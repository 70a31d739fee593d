"""What a reader says of a record: problems, each of a kind; notes of what was changed on the way; the Samples that it became."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from drivekd.sample import Sample

ProblemKind = Literal[
    "file",  # unreadable, cut off, of no known format
    "no record",  # another JSON value, a line that is no JSON
    "messages",  # turns missing, in an order that is no question and answer, or of a kind that is not read
    "several turns",  # later turns whose meaning a question with pictures in front cannot keep
    "question",
    "answer missing",
    "picture marker",  # not as many as pictures, or where its place carries meaning
    "pictures",  # the field itself; a file that is not there is "missing picture"
    "question_type",
    "meta",
    "options",
    "structured",  # the record's own answer as an object does not fit its schema
    "lone surrogate",
    "other field",
]
PROBLEM_KINDS: tuple[ProblemKind, ...] = get_args(ProblemKind)

NoteKind = Literal[
    "system turn left out: the checkpoint's own prompt holds",
    "picture marker moved in front of the question",
    "no picture marker: pictures put in front",
    "camera label before a picture marker taken as the camera's name",
    "later turn read with the turns before it as text",
    "several letters in the answer: not scored as a choice",
]


@dataclass(frozen=True)
class Problem:
    """text: "FILE, record N: field: what was found and what would be right"."""

    kind: ProblemKind
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ParsedRecord:
    """One record of a file. source: "FILE, record N". samples: none when there are problems, several for several answered turns.
    raw: as it stands in the file, for writers that keep keys which are not read."""

    source: str
    samples: tuple[Sample, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[NoteKind, ...] = ()
    raw: object = None


@dataclass
class Faults:
    """Collects a record's problems and notes while it is read; a problem is given as "field: what is wrong"."""

    source: str
    problems: list[Problem] = field(default_factory=list)
    notes: list[NoteKind] = field(default_factory=list)

    def add(self, kind: ProblemKind, text: str) -> None:
        """Add a problem, "field: what is wrong"; the record's name is put in front."""
        self.problems.append(Problem(kind, f"{self.source}: {text}"))

    def note(self, kind: NoteKind) -> None:
        """Add a note of what was changed."""
        self.notes.append(kind)

    def record(self, samples: tuple[Sample, ...], raw: object) -> ParsedRecord:
        """The record, without samples when there is a problem."""
        kept = () if self.problems else samples
        return ParsedRecord(self.source, kept, tuple(self.problems), tuple(self.notes), raw)


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a pair, as half an emoji is: no tokenizer and no UTF-8 file can take it."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_surrogates(faults: Faults, **texts: str | None) -> None:
    """Add a problem for each text, by its field's name, that holds a lone surrogate."""
    for name, text in texts.items():
        if text is not None and has_lone_surrogate(text):
            found = next(character for character in text if "\ud800" <= character <= "\udfff")
            faults.add(
                "lone surrogate", f"{name}: holds \\u{ord(found):04x}, half of a character; write the whole or take it out"
            )
