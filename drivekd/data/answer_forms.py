"""What a question's own words say about how its answer is scored."""

from __future__ import annotations

import re

from drivekd.sample import AnswerForm

_LETTERS = "ABCDEFGH"
# The word ends there: "No." and "Yes, two cars." are answers, DriveLM's "No entry." and "No such action ..." are not.
_YES_OR_NO = re.compile(r"\s*(?:yes|no)\s*(?:[.,;:!]|$)", re.IGNORECASE)


def options(question: str) -> dict[str, str]:
    """The offered options, letter -> text, without a closing full stop; empty when the question offers fewer than two.

    They stand behind the last "options:" when the question has one, and count A, B, C, ...

        >>> options("Which way? Options: A. Left. B. Right.")
        {'A': 'Left', 'B': 'Right'}
        >>> options("Is a car near?")
        {}
    """
    marker = list(re.finditer(r"\boptions\s*:", question, re.IGNORECASE))
    text = question[marker[-1].end() :] if marker else question
    starts = _option_starts(text)
    ends = [start for start, _ in starts[1:]] + [len(text)]
    if len(starts) < 2:
        return {}
    return {
        letter: text[body:end].strip().removesuffix(".").strip()
        for letter, (_, body), end in zip(_LETTERS, starts, ends, strict=False)
    }


def _option_starts(text: str) -> list[tuple[int, int]]:
    """(start of the letter, start of its text) of A, B, C, ... as long as the next letter is found."""
    starts: list[tuple[int, int]] = []
    position = 0
    for letter in _LETTERS:
        match = re.compile(rf"(?:(?<=\s)|^)\(?{letter}[.):]\s+").search(text, position)
        if match is None:
            break
        starts.append((match.start(), match.end()))
        position = match.end()
    return starts


def infer_answer_form(question: str, answer: str | None) -> AnswerForm:
    """choice when the question offers options, yesno when the answer is a yes or no, else open."""
    if options(question):
        return "choice"
    return "yesno" if answer is not None and _YES_OR_NO.match(answer) else "open"
