"""Whether a text says yes or no.

It says so when it begins with the word, marks it as its answer, or concludes with it. "No" before a noun ("no red light") is a
determiner, and no answer; nor is what is doubted, denied, hung on a condition, weighed ("Yes: 30 %") or said both ways, in one
sentence or in two ("Yes, but actually no").
"""

from __future__ import annotations

import re
from typing import Literal

from drivekd.evaluate.extract.wording import WINDOW, has_condition, is_doubted, json_answers, plain

_NO_GOES_ON = r"\s+(?:it|there|they|the|this|that|because|since|as|i|he|she|we|explanation)\b"
_LEADING = re.compile(
    rf"\W*(?:(yes)(?!-?\w|\s+and\s|\s+or\s)|(no)(?!-\w)(?=\s*(?:[.,;:!)\-–—]|$|\n)|{_NO_GOES_ON}))", re.IGNORECASE
)
_MARKED = re.compile(
    r"(?<!\w)(?:final(?:\s+answer)?|answer)(?!\w)\s*(?:is|was)?\s*:?\s*(?:(yes)(?!\w)|(no)(?=\s*(?:[.,;:!)]|$|\n)))",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(r"(?<!\w)(?:so|therefore|thus|hence)\s*[,:]?\s*(?:(yes)|(no))\s*[.!]?\s*$", re.IGNORECASE)
_OWN_LINE = re.compile(r"^\s*(?:(yes)|(no))\s*[.!]?\s*$", re.IGNORECASE | re.MULTILINE)
_BOTH = re.compile(
    r"(?<!\w)yes\s*(?:and|or|/)\s*no(?!\w)|(?<!\w)no\s*(?:and|or|/|,)?\s*yes(?!\w)|(?<!\w)yes\s*,?\s*no\s*(?:[.,;:!?)]|$|\n)",
    re.IGNORECASE,
)
_YES = re.compile(r"(?<!\w)yes(?!-?\w)", re.IGNORECASE)
_NO = re.compile(r"(?<![\w-])no(?=\s*(?:[.,;:!?)]|$|\n))", re.IGNORECASE)
_NO_WORD_OF_ITS_OWN = re.compile(
    r"\s*[.:]?\s*\d|\s*[:=(\-–—]\s*\d+(?:\.\d+)?\s*%|\s+(?:is|was|would)\b(?!\s+(?:the|my|correct|right))"
)


def yes_no(text: str) -> Literal["yes", "no"] | None:
    """The yes or no that `text` states, or None.

    >>> yes_no("Yes, two cars."), yes_no("A van is near. Final answer: no"), yes_no("Probably yes")
    ('yes', 'no', None)
    >>> yes_no("Yes and no."), yes_no("There is no red light")
    (None, None)
    """
    answers = json_answers(text)
    if answers is not None:
        said = {_yes_no(answer) for answer in answers}
        return said.pop() if len(said) == 1 else None
    return _yes_no(text)


def _yes_no(text: str) -> Literal["yes", "no"] | None:
    words = plain(text)
    leading = _LEADING.match(words)
    found = [leading] if leading else []
    for pattern in (_MARKED, _CONCLUDED, _OWN_LINE):
        found += pattern.finditer(words)
    said = {"yes" if match[1] else "no" for match in found}
    if len(said) != 1 or _BOTH.search(words) or any(_taken_back(words, match) for match in found):
        return None
    if said == {"yes"}:
        return None if _NO.search(words) else "yes"
    return None if _YES.search(words) else "no"


def _taken_back(words: str, match: re.Match[str]) -> bool:
    """ "Yes?" asks, "Yes is wrong" refutes, "I doubt that the answer is yes" does not state; what follows a full stop or a comma
    is the reason, not the answer."""
    behind = words[match.end() : match.end() + WINDOW]
    if behind.lstrip().startswith("?") or _NO_WORD_OF_ITS_OWN.match(behind) or has_condition(behind):
        return True
    return (
        is_doubted(words, match.start(), match.end()) if behind.startswith(" ") else is_doubted(words, match.start(), len(words))
    )
