"""DriveLM's challenge score by the upstream rules, defects included (OpenDriveLab/DriveLM, challenge/evaluation.py).

    final    = .2 accuracy + .4 judge + .2 language + .2 match           (all 0 to 1 here)
    accuracy   tag 0: the answer is the true one, letter by letter: "B." is not "B"
    judge      tag 1: a language model's marks
    language   tag 2: (mean of BLEU-1..4 + ROUGE_L + CIDEr / 10) / 3
    match      tag 3: (F1 + judge) / 2

F1 is of every decimal number in the texts, two and two, whatever they stand for: cameras are ignored, an odd number at the end of
an answer is dropped, each predicted pair takes the nearest true one that is left, nearer than 16 (L1). Gating: a frame's later
questions count only where every pair of numbers in them is among the true pairs that the frame's first answer matched. Where
upstream divides by nothing or stops, the part is None here and says why. Texts are in pixels of 1600x900, as upstream has them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from . import language

THRESHOLD_PX = 16.0
WEIGHTS = {"accuracy": 0.2, "judge": 0.4, "language": 0.2, "match": 0.2}
_EPSILON = 1e-8  # upstream's own, so that F1 of nothing is 0 and of everything is 1 - 1e-8
_NUMBER = re.compile(r"\d+\.\d+")
Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Asked:
    """One question with its answer (None: none was given), texts in pixels. frame: scene and frame together."""

    frame: str
    tag: tuple[int, ...]
    question: str
    truth: str
    answer: str | None


@dataclass(frozen=True)
class DriveLMScore:
    """Parts from 0 to 1, None where there is nothing to compute them of. f1: of match; the judge's half of it is not in it.

    language_parts: bleu_1 to bleu_4, rouge_l, cider (0 to 10). n: by part, how many questions count. gated: how many do not,
    since their frame's first answer did not find what they are about. left_out: reason -> how many upstream has no rule for.
    """

    accuracy: float | None
    language: float | None
    f1: float | None
    language_parts: dict[str, float] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    gated: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def match(self, judge: float | None) -> float | None:
        """judge: mean marks of the tag 3 answers, 0 to 1. None without marks: half of a score is no score."""
        return None if judge is None or self.f1 is None else (self.f1 + judge) / 2

    def final(self, judge: float | None, match_judge: float | None) -> float | None:
        """judge, match_judge: mean marks of tag 1 and tag 3 answers, 0 to 1. None where any part is missing."""
        match = self.match(match_judge)
        if self.accuracy is None or judge is None or self.language is None or match is None:
            return None
        parts = {"accuracy": self.accuracy, "judge": judge, "language": self.language, "match": match}
        return sum(WEIGHTS[name] * value for name, value in parts.items())


def drivelm_score(asked: Iterable[Asked]) -> DriveLMScore:
    """Score a file's questions with their answers. asked: each frame's questions in DriveLM's order (perception, prediction,
    planning, behavior); the first opens the gate for the others."""
    counting, gated, left_out = _counting(asked)
    by_tag: dict[int, list[Asked]] = defaultdict(list)
    for one in counting:
        if not set(one.tag) & {0, 1, 2, 3}:
            left_out["questions without one of the tags 0 to 3"] += 1
        for tag in set(one.tag):
            by_tag[tag].append(one)
    matched = [f1_of(one.answer or "", one.truth) for one in by_tag[3]]
    known = [found for found in matched if found is not None]
    if len(known) < len(matched):
        left_out["true answers with an odd number of decimals"] += len(matched) - len(known)
    parts = _language_parts(by_tag[2])
    return DriveLMScore(
        accuracy=_mean([float(one.answer == one.truth) for one in by_tag[0]]),
        language=language_score(parts) if parts else None,
        f1=_mean(known),
        language_parts=parts,
        n={"accuracy": len(by_tag[0]), "judge": len(by_tag[1]), "language": len(by_tag[2]), "match": len(known)},
        gated=gated,
        left_out=dict(left_out),
    )


def _counting(asked: Iterable[Asked]) -> tuple[list[Asked], int, Counter[str]]:
    """The questions that pass the gate, how many do not, and those that upstream would stop at."""
    graphs: dict[str, list[Point] | None] = {}
    counting: list[Asked] = []
    gated, left_out = 0, Counter[str]()
    for one in asked:
        is_first = one.frame not in graphs
        if is_first:
            graphs[one.frame] = None if one.answer is None else matched_points(one.answer, one.truth)
        graph, about = graphs[one.frame], [] if is_first else points(one.question)
        if graph is None:
            left_out["questions of frames whose first one has no answer, or no pairs of decimals in its truth"] += 1
        elif one.answer is None:
            left_out["questions without an answer"] += 1
        elif about is None:
            left_out["questions with an odd number of decimals"] += 1
        elif any(point not in graph for point in about):
            gated += 1
        else:
            counting.append(one)
    return counting, gated, left_out


def points(text: str) -> list[Point] | None:
    """Every decimal number of a text, two and two; None for an odd number of them."""
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return None if len(numbers) % 2 else list(zip(numbers[::2], numbers[1::2], strict=True))


def matched_points(answer: str, truth: str) -> list[Point] | None:
    """The true points that the answer's points take, each the nearest one left; None where the truth has an odd number."""
    left = points(truth)
    if left is None:
        return None
    numbers = _NUMBER.findall(answer)
    matched: list[Point] = []
    for x, y in zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=False):  # an odd one at the end is dropped
        distances = [abs(x - a) + abs(y - b) for a, b in left]
        if distances and min(distances) < THRESHOLD_PX:
            matched.append(left.pop(distances.index(min(distances))))
    return matched


def f1_of(answer: str, truth: str) -> float | None:
    """F1 of the answer's points; None where the truth has an odd number of decimals."""
    matched = matched_points(answer, truth)
    if matched is None:
        return None
    said, true = len(_NUMBER.findall(answer)) // 2, len(_NUMBER.findall(truth)) // 2
    precision, recall = len(matched) / (said + _EPSILON), len(matched) / (true + _EPSILON)
    return 2 * precision * recall / (precision + recall + _EPSILON)


def language_score(parts: dict[str, float]) -> float:
    """(mean of BLEU-1..4 + ROUGE_L + CIDEr / 10) / 3, as upstream weighs them."""
    bleu = sum(parts[f"bleu_{order}"] for order in range(1, 5)) / 4
    return (bleu + parts["rouge_l"] + parts["cider"] / 10) / 3


def _language_parts(asked: Sequence[Asked]) -> dict[str, float]:
    if not asked or not language.is_available():
        return {}
    found = language.compare([one.answer or "" for one in asked], [one.truth for one in asked])
    bleu = {f"bleu_{order}": value for order, value in enumerate(found.bleu(), 1)}
    return {**bleu, "rouge_l": float(found.rouge_l.mean()), "cider": float(found.cider.mean())}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
