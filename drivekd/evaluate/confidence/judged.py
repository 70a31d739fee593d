"""What calibration learns from: of each answer how sure the model was, whether it was right, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from drivekd.answered import Answered

from .fit import Bools, Floats


@dataclass(frozen=True)
class Judged:
    """scene: what the two halves must not share; the pictures, where a record names no scene."""

    logprob: float
    right: bool
    scene: str


@dataclass(frozen=True)
class Counted:
    """judged: answers of one capability. left_out: those that say nothing of confidence, by why."""

    judged: list[Judged]
    left_out: dict[str, int]


def judged_answers(answered: Iterable[Answered], is_right: Callable[[Answered], bool | None]) -> Counted:
    """is_right: None for an answer that nothing can judge. A text that states no answer is wrong, as the scores have it."""
    judged: list[Judged] = []
    left_out: dict[str, int] = {}
    for one in answered:
        right, logprob = is_right(one), one.given.mean_logprob
        if right is None:
            left_out["open questions"] = left_out.get("open questions", 0) + 1
        elif logprob is None:
            left_out["no token was chosen"] = left_out.get("no token was chosen", 0) + 1
        else:
            scene = one.sample.scene or one.sample.frame or "|".join(map(str, one.sample.images))
            judged.append(Judged(logprob, right, scene))
    return Counted(judged, left_out)


def arrays(judged: list[Judged]) -> tuple[Floats, Bools]:
    """Mean log-probabilities [N] and whether each is right [N]."""
    return np.asarray([one.logprob for one in judged], np.float64), np.asarray([one.right for one in judged], np.bool_)
