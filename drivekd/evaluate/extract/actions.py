"""What a text would have the car do, as a set, and how probable it calls that.

keep, slow, brake, stop, accelerate, left, right, back; none: "no such action". An action counts where it is told to be taken,
not where it is denied ("without braking", "do not turn left"). A lane or a car at the left is no action; a turn, a shift or a
step to it is one.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from .wording import plain

Action = Literal["keep", "slow", "brake", "stop", "accelerate", "left", "right", "back", "none"]
ACTIONS: tuple[Action, ...] = get_args(Action)
Level = Literal["low", "medium", "high"]

_SIDEWAYS = (
    r"\b(?:turn|steer|offset|mov|shift|chang|merg|veer|swerv|nudg|head|bear|driv|go|goes|going|switch|pull|accelerat)\w*\b"
    r"(?:\s+(?:slightly|sharply|gently|gradually|a\s+little|lanes?|back|over|ahead|forward|and))*"
    r"(?:\s+(?:to|into|towards?)(?:\s+the)?)?(?:\s+(?:hard|slight|sharp|adjacent|front))?\s+{side}\b(?!\s+of\b)"
    r"|\b{side}(?:-|\s+)(?:hand\s+)?(?:turn|lane\s+change|shift|offset)\w*"
)
_WORDS: dict[Action, str] = {
    "none": r"\bno\s+(?:such\s+)?(?:safe\s+|other\s+)?actions?\b",
    "keep": r"\bkeep\w*\s+(?:on\s+)?(?:going|driving|moving|straight|the\s+(?:same\s+|current\s+)?(?:speed|lane|course))"
    r"|\b(?:at|with)\s+the\s+(?:same|current)\s+speed|\bcontinu\w+|\bmaintain\w*(?!\s+a\s+safe\s+distance)"
    r"|\b(?:go|goes|going|driv\w+|proceed\w*)\s+(?:straight|ahead)\b|\bproceed\w*",
    "slow": r"\bslow\w*\s+down|\bdecelerat\w+|\breduc\w+\s+(?:its\s+|the\s+|your\s+)?speed|\bdriv\w+\s+slow\w*"
    r"|\bslow\s+(?:speed|gradually)",
    "brake": r"\bbrak(?:e|es|ed|ing)\b(?!\s+lights?)",
    "stop": r"\bstop(?:s|ped|ping)?\b(?!\s+(?:sign|line|light)s?)"
    r"|\b(?:come|comes|coming)\s+to\s+a\s+(?:complete\s+)?(?:halt|standstill)"
    r"|\b(?:remain|stay|keep|stand)\w*\s+(?:stationary|still|stopped)|\bnot\s+mov(?:e|ing)\b",
    "accelerate": r"\baccelerat\w+|\bspeed\w*\s+up|\bincreas\w+\s+(?:its\s+|the\s+|your\s+)?speed",
    "left": _SIDEWAYS.format(side="left"),
    "right": _SIDEWAYS.format(side="right"),
    "back": r"\bback(?:s|ed|ing)?\s+up\b|\brevers(?:e|es|ed|ing)\b|\bmov\w+\s+backwards?",
}
_PATTERNS = {action: re.compile(words, re.IGNORECASE) for action, words in _WORDS.items()}
_DENIED = re.compile(
    r"\b(?:not|never|without|avoid\w*|instead\s+of|rather\s+than|cannot|no|neither|nor|refrain\w*\s+from)\b|n['’]t\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,;:.!?\n]|\b(?:but|then|so)\b", re.IGNORECASE)
_LEVEL = re.compile(r"\b(low|medium|moderate|high)\b(?!\s+(?:beams?|speeds?|way|lights?|visibility))", re.IGNORECASE)
_PROBABILITY = re.compile(r"\b(?:probabilit\w+|likelihood|chances?)\b", re.IGNORECASE)


def actions(text: str) -> frozenset[Action]:
    """The actions that a text tells to take.

    actions("Brake gently to a stop, slightly offset to the left.")  ->  brake, stop, left
    actions("Decelerate gradually without braking.")                 ->  slow
    """
    words = plain(text)
    return frozenset(
        action
        for action, pattern in _PATTERNS.items()
        if any(
            action == "none" or "not mov" in match[0].lower() or not _is_denied(words, match) for match in pattern.finditer(words)
        )
    )


def _is_denied(words: str, match: re.Match[str]) -> bool:
    before = words[max(0, match.start() - 80) : match.start()]
    return _DENIED.search(_CLAUSE.split(before)[-1]) is not None


def probability(text: str) -> Level | None:
    """The one level of probability that a text states, near the word or as a word of its own; None when none or several."""
    words = plain(text)
    near = _LEVEL.findall(" ".join(part for part in re.split(r"[.;\n]", words) if _PROBABILITY.search(part)))
    alone = re.findall(r"(?:^|[,.;:])\s*(low|medium|moderate|high)\s*(?=[.,;]|$)", words, re.IGNORECASE)
    found = {"medium" if level.lower() == "moderate" else level.lower() for level in near or alone}
    for level in ("low", "medium", "high"):
        if found == {level}:
            return level
    return None
