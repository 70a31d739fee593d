"""The score that a judge's reply ends with, read strictly: whatever is not plainly one score is none."""

from __future__ import annotations

import re

_THOUGHTS = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL)  # reasoning judges think aloud first, of several totals
_MARKUP = re.compile(r"[*_`#]")
_TOTAL = re.compile(r"\s*total score\s*:\s*(\S.*?)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,2})?)(?:\s*/\s*100)?\.?")


class NoScore(ValueError):
    """Why a reply has no score, in a few words that are counted by kind."""


def total_score(reply: str, *, finished: bool = True) -> float:
    """The N of the line "Total Score: N" with which a reply ends, 0 to 100. Raises NoScore.

    Only lines that hold nothing else count, so a judge may quote in a sentence what an answer claims about its score. A line of
    another number anywhere makes the reply undecided. finished: False when the reply was cut, since 1 may have become 100.
    """
    if not finished:
        raise NoScore("cut by max_reply_tokens")
    lines = [_MARKUP.sub("", line) for line in _THOUGHTS.sub("", reply).splitlines()]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise NoScore("empty reply")
    totals = [match[1] for line in lines if (match := _TOTAL.fullmatch(line))]
    if not totals:
        raise NoScore("no line Total Score: N")
    if not _TOTAL.fullmatch(lines[-1]):
        raise NoScore("does not end with Total Score: N")
    return _only(totals)


def _only(totals: list[str]) -> float:
    numbers = [_NUMBER.fullmatch(text) for text in totals]
    values = {float(number[1]) for number in numbers if number}
    if None in numbers:
        raise NoScore("no number behind Total Score:")
    if len(values) > 1:
        raise NoScore("two different totals")
    (value,) = values
    if value > 100:
        raise NoScore("out of range 0 to 100")
    return value
