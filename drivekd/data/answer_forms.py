"""What a question's own words say about how its answer is scored."""

from __future__ import annotations

import re
from functools import lru_cache

from drivekd.sample import AnswerForm

_LETTERS = "ABCDEFGH"
_OPTIONS = re.compile(r"\boptions\s*:", re.IGNORECASE)
_STARTS = {letter: re.compile(rf"(?:(?<=\s)|^)\(?{letter}[.):]\s+") for letter in _LETTERS}
_AND = r"\s*(?:,\s*and\b|,\s*or\b|,|;|/|&|\+|\band\b|\bor\b)\s*"
_ONE = r"[({\[]?[A-H][.)\]}]?"
# "A, C", "A and C.", "Final: {A, C}": letters up to the end of the sentence, so that "B, A car is there" is B alone
_SEVERAL = re.compile(
    rf"\s*(?:(?i:final(?:\s+answers?)?|answers?|options?)\s*:?\s*)?({_ONE}(?:{_AND}{_ONE})+)\s*(?:[.,;:}}\])]|$|\n|\b(?:are|apply)\b)"
)
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
    return dict(_options(question))


@lru_cache(maxsize=256)
def _options(question: str) -> tuple[tuple[str, str], ...]:
    """A question is looked at by several checks, one behind the other."""
    marker = list(_OPTIONS.finditer(question))
    text = question[marker[-1].end() :] if marker else question
    starts = _option_starts(text)
    ends = [start for start, _ in starts[1:]] + [len(text)]
    if len(starts) < 2:
        return ()
    return tuple(
        (letter, text[body:end].strip().removesuffix(".").strip())
        for letter, (_, body), end in zip(_LETTERS, starts, ends, strict=False)
    )


def _option_starts(text: str) -> list[tuple[int, int]]:
    """(start of the letter, start of its text) of A, B, C, ... as long as the next letter is found."""
    starts: list[tuple[int, int]] = []
    position = 0
    for letter in _LETTERS:
        match = _STARTS[letter].search(text, position)
        if match is None:
            break
        starts.append((match.start(), match.end()))
        position = match.end()
    return starts


def several_letters(question: str, answer: str | None) -> tuple[str, ...]:
    """The options that an answer states when it states more than one, as "A, C" does; else ().

    >>> several_letters("Which apply? A. Red. B. Green. C. Off.", "A, C")
    ('A', 'C')
    >>> several_letters("Which way? A. Left. B. Right.", "B, A car is there.")
    ()
    """
    match = _SEVERAL.match(answer or "")
    if match is None:
        return ()
    letters = tuple(dict.fromkeys(re.findall(r"[A-H]", match[1])))
    return letters if len(letters) > 1 and options(question) else ()


def infer_answer_form(question: str, answer: str | None) -> AnswerForm:
    """choice when the question offers options of which the answer states not several, yesno when the answer is a yes or no, else
    open."""
    if options(question):
        return "open" if several_letters(question, answer) else "choice"
    return "yesno" if answer is not None and _YES_OR_NO.match(answer) else "open"
