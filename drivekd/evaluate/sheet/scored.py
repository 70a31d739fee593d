"""The answers of an evaluation folder one by one: what each states, whether that is right, and why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drivekd.answered import Answered
from drivekd.errors import UsageError
from drivekd.evaluate.metrics import match_tags
from drivekd.evaluate.predictions import answers_in
from drivekd.evaluate.scoring import item_from_sample, parse_answer
from drivekd.sample import Sample
from drivekd.tags import CoordinateStyle, coordinate_style, find_tags, malformed_tags


@dataclass(frozen=True)
class ScoredAnswer:
    """score: 1 right, 0 wrong, of tags their F1; None where nothing tells. verdict: the same in words, with why. true, stated:
    the letter, "yes" or "no" that is right and that the text states; None for an open question, or where it states none.

    setting: what was done to the pictures. mean_logprob: None where nobody measured it.
    """

    sample: Sample
    text: str
    setting: str
    cut: bool
    mean_logprob: float | None
    score: float | None
    verdict: str
    true: str | None
    stated: str | None

    @property
    def surety(self) -> float:
        """For sorting: higher is surer; all alike where nothing was measured."""
        return self.mean_logprob if self.mean_logprob is not None else -math.inf

    @property
    def cluster(self) -> str:
        """What is drawn together for intervals."""
        return self.sample.scene or "|".join(map(str, self.sample.images)) or self.sample.source


@dataclass(frozen=True)
class ScoredFolder:
    """answers: in the order of the file. style: how all its tags are written."""

    answers: tuple[ScoredAnswer, ...]
    style: CoordinateStyle

    @property
    def settings(self) -> tuple[str, ...]:
        """Picture settings, "clean" first."""
        return tuple(sorted({one.setting for one in self.answers}, key=lambda name: (name != "clean", name)))

    def of(self, setting: str) -> list[ScoredAnswer]:
        """The answers under one setting."""
        return [one for one in self.answers if one.setting == setting]


def read_scored(folder: Path) -> ScoredFolder:
    """The answers of a `drivekd eval`, of all its shards. Raises UsageError where there are none, DataError for a broken line."""
    answers = [line.answered for line in answers_in(folder)] if folder.is_dir() else []
    if not answers:
        raise UsageError(f"{folder}: holds no answers (predictions.jsonl); give the --out folder of a `drivekd eval`")
    return scored_folder(answers)


def scored_folder(answers: Sequence[Answered]) -> ScoredFolder:
    """Answers of one model, each with its verdict."""
    style = coordinate_style(text for one in answers for text in (one.sample.question, one.sample.answer or ""))
    return ScoredFolder(tuple(_scored(one, style) for one in answers), style)


def _scored(answered: Answered, style: CoordinateStyle) -> ScoredAnswer:
    given, cut = answered.given, answered.given.finish_reason == "length"
    score, verdict, true, stated = _verdict(answered.sample, given.text, style)
    return ScoredAnswer(
        sample=answered.sample,
        text=given.text,
        setting=answered.setting,
        cut=cut,
        mean_logprob=given.mean_logprob,
        score=score,
        verdict=f"{verdict}; cut by its token budget" if cut else verdict,
        true=true,
        stated=stated,
    )


def _verdict(sample: Sample, text: str, style: CoordinateStyle) -> tuple[float | None, str, str | None, str | None]:
    if sample.answer is None:
        return None, "no reference", None, None
    if sample.answer_form != "open":
        item = item_from_sample(sample)
        stated = parse_answer(text, sample)
        if stated is None:
            return 0.0, f"states no answer; right is {item.answer}", item.answer, None
        right = stated == item.answer
        return float(right), "right" if right else f"says {stated}, right is {item.answer}", item.answer, stated
    true = find_tags(sample.answer, style)
    if not true:
        return None, "open answer", None, None
    counts = match_tags(find_tags(text, style), true)
    broken = len(malformed_tags(text, style))
    words = f"{counts.matched} of {counts.true} objects found, {counts.predicted - counts.matched} named that are not there"
    return counts.f1, words + (f", {broken} malformed tags" if broken else ""), None, None


def confusion_counts(
    pairs: Sequence[tuple[str, str | None]],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """True classes, stated classes ("unparsed" last, where there are any), counts[true][stated]. pairs: (true, stated)."""
    names = sorted({name for pair in pairs for name in pair if name is not None})
    stated: list[str | None] = [*names, *([None] if any(said is None for _, said in pairs) else [])]
    true = [name for name in names if any(right == name for right, _ in pairs)]
    counts = tuple(tuple(sum(pair == (right, said) for pair in pairs) for said in stated) for right in true)
    return tuple(true), tuple(name or "unparsed" for name in stated), counts
