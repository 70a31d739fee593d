"""The answer that a generated text states, read strictly: what cannot be decided is None, counted and never guessed.

Three readings in this order, each only when it is unambiguous: an explicit marker ("Final: B.", "the answer is B"), a
leading letter ("B. Turn left"), the text of exactly one option. A capital A before a word is the article, not option A.
Also the named parts of a structured answer ("Final: ...", "Object: ..."), which Drive-KD's rubrics reward.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from drivekd.data.answer_forms import options
from drivekd.runtime.answers.named_parts import named_parts

__all__ = ["choice", "options", "yes_no"]

_MARKUP = re.compile(r"[*_`{}\[\]\"“”]")
_IS = r"\s*(?i:is|was)?\s*:?\s*(?i:option\s+)?\(?"
# Behind a letter: a delimiter, the end, or (for all but the article A) a blank; "A because" is no article either.
_LETTER = r"(?:([A-H])(?=[).:,;]|\s*$|\s*\n|\s+(?:because|since|as)\b)|([B-H])(?=\s))"
_MARKERS = (
    re.compile(r"\b(?i:final(?:\s+answer)?)\b" + _IS + _LETTER),
    re.compile(r"\b(?i:answer|(?:option|choice)(?=\s*(?:is\b|:)))\b" + _IS + _LETTER),
    re.compile(r"\b(?i:option|choice)\s*\(?([A-H])(?!\w)"),
)
_LEADING = re.compile(r"\s*\(?([A-H])(?:[).:,;]|\s*$|\s*\n)")
_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_YES_NO_MARKER = re.compile(r"\b(?:final(?:\s+answer)?|answer)\s*(?:is)?\s*:?\s*(yes|no)\b", re.IGNORECASE)


def choice(text: str, question: str) -> str | None:
    """The letter of the option that `text` chooses out of those that `question` offers, or None.

    >>> which_way = "Which way? Options: A. Left. B. Right."
    >>> choice("The answer is B, because a car turns.", which_way)
    'B'
    >>> choice("It turns left.", which_way)
    'A'
    >>> choice("A or B", which_way) is None
    True
    """
    offered = options(question)
    plain = _MARKUP.sub("", text).strip()
    for marker in _MARKERS:
        stated = {group for match in marker.finditer(plain) for group in match.groups() if group}
        if stated:
            return _only_offered(stated, offered)
    leading = _LEADING.match(plain)
    if leading:
        return _only_offered({leading[1]}, offered)
    return _option_by_text(plain, offered)


def yes_no(text: str) -> Literal["yes", "no"] | None:
    """The yes or no that `text` begins with or marks as its answer, or None.

    >>> yes_no("Yes, two cars."), yes_no("A van is near. Final answer: no"), yes_no("Probably yes")
    ('yes', 'no', None)
    """
    plain = _MARKUP.sub("", text)
    match = _YES_NO.match(plain)
    stated = {match[1].lower()} if match else {word.lower() for word in _YES_NO_MARKER.findall(plain)}
    if len(stated) != 1:
        return None
    return "yes" if stated == {"yes"} else "no"


def _only_offered(stated: set[str], offered: Mapping[str, str]) -> str | None:
    """The one stated letter; None when the text states several, or one that the question does not offer."""
    letter = next(iter(stated))
    return letter if len(stated) == 1 and (not offered or letter in offered) else None


def _option_by_text(text: str, offered: Mapping[str, str]) -> str | None:
    """The letter of the only option whose words occur, longest first: "slightly left" is not also "left"."""
    rest = " ".join(text.lower().split())
    named = set()
    for letter, option in sorted(offered.items(), key=lambda item: -len(item[1])):
        words = re.escape(" ".join(option.lower().split()))
        found = re.compile(rf"(?<!not )(?<!n't )(?<!\w){words}(?!\w)")
        if option and found.search(rest):
            named.add(letter)
            rest = found.sub(" | ", rest)
    return named.pop() if len(named) == 1 else None


def field_names(text: str) -> tuple[str, ...]:
    """Names of the parts of `text`, in order and as written: here, unlike in the car's fields, order, case and repetition count,
    and so does a part that was cut before its value. What a part is: drivekd.runtime.answers.named_parts."""
    return tuple(name for name, _ in named_parts(text)[1])


def is_schema_valid(text: str, example: str) -> bool:
    """Whether `text` has, in order, every named part that `example` (the true answer) has."""
    found = iter(field_names(text))
    return all(name in found for name in field_names(example))
