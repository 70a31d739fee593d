"""The answers of an evaluation folder one by one: what each states, whether that is right, and why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from drivekd.answered import Answered
from drivekd.errors import UsageError
from drivekd.evaluate.metrics import language, match_tags
from drivekd.evaluate.predictions import answers_in
from drivekd.evaluate.scored import Scored, cluster, scored_from
from drivekd.evaluate.scoring import why_not_scored
from drivekd.evaluate.sheet.document import MarkOf
from drivekd.evaluate.structured_scores import stated_key, true_key
from drivekd.sample import Sample
from drivekd.tags import CoordinateStyle, coordinate_style, normalize_tags

Kind: TypeAlias = Literal["closed", "tags", "words", "structured", "none"]


@dataclass(frozen=True)
class ScoredAnswer:
    """kind: how it is scored. score: closed (choice, yes or no), structured (an answer as JSON): 1 right, 0 wrong; tags: their
    F1; words: ROUGE_L; None where nothing tells. verdict: the same in words, with why. true, stated: the letter, "yes" or "no"
    that is right and that the text states; None for an open question, or where it states none.

    setting: what was done to the pictures. mean_logprob: None where nobody measured it. named: the texts whose tags are marked on
    pictures, tags normalised.
    """

    sample: Sample
    text: str
    setting: str
    mean_logprob: float | None
    kind: Kind
    score: float | None
    verdict: str
    true: str | None
    stated: str | None
    named: tuple[tuple[MarkOf, str], ...]

    @property
    def surety(self) -> float:
        """For sorting: higher is surer; all alike where nothing was measured."""
        return self.mean_logprob if self.mean_logprob is not None else -math.inf

    @property
    def cluster(self) -> str:
        """What is drawn together for intervals."""
        return cluster(self.sample)

    @property
    def is_good(self) -> bool | None:
        """Right, or most objects found; None where only words are compared."""
        return None if self.score is None or self.kind == "words" else self.score >= 0.5


@dataclass(frozen=True)
class ScoredFolder:
    """answers: in the order of the file."""

    answers: tuple[ScoredAnswer, ...]


def read_scored(folder: Path, *, structured: bool = False, setting: str | None = None) -> ScoredFolder:
    """The answers of a `drivekd eval`, of all its shards. structured: they are JSON under the schemas. setting:
    of the pictures, None = all.

    Raises UsageError where there are none, DataError for a broken line.
    """
    answers = [line.answered for line in answers_in(folder)] if folder.is_dir() else []
    if not answers:
        raise UsageError(f"{folder}: holds no answers (predictions.jsonl); give the --out folder of a `drivekd eval`")
    answers = [one for one in answers if setting in (None, one.setting)]
    return ScoredFolder(tuple(map(_structured, answers))) if structured else scored_folder(answers)


def _structured(one: Answered) -> ScoredAnswer:
    """What an answer as JSON states beside what its record does, as the report counts it."""
    right, stated = true_key(one.sample), stated_key(one.sample.capability, one.given.text)
    if right is None:
        return _unscored(one, "the record states nothing to compare with")
    verdict = f"states {stated}, right is {right}" if stated is not None else f"states nothing; right is {right}"
    return replace(
        _unscored(one, "right" if stated == right else verdict),
        kind="structured",
        score=float(stated == right),
        named=(("question", one.sample.question), ("reference", one.sample.answer or "")),
    )


def scored_folder(answers: Sequence[Answered]) -> ScoredFolder:
    """Answers of one model, each with its verdict; those that nothing can score have why."""
    why_not = [why_not_scored(one.sample) for one in answers]
    scored = iter(scored_from([one for one, why in zip(answers, why_not, strict=True) if why is None]))
    readings = [next(scored) if why is None else None for why in why_not]
    likeness = _likeness([reading for reading in readings if reading is not None])
    style = coordinate_style(text for one in answers for text in (one.sample.question, one.sample.answer or ""))
    return ScoredFolder(
        tuple(
            _unscored(one, why or "") if reading is None else _with_verdict(one, reading, likeness.get(id(reading)), style)
            for one, why, reading in zip(answers, why_not, readings, strict=True)
        )
    )


def _likeness(readings: Sequence[Scored]) -> dict[int, float]:
    """ROUGE_L by the id of each reading that only words can compare, all at once: one by one takes many times as long."""
    compared = [reading for reading in readings if reading.is_open and not reading.true_tags]
    if not compared or not language.is_available():
        return {}
    found = language.compare([one.text for one in compared], [one.answer for one in compared]).rouge_l
    return {id(reading): float(value) for reading, value in zip(compared, found, strict=True)}


def _unscored(one: Answered, why: str) -> ScoredAnswer:
    return ScoredAnswer(one.sample, one.given.text, one.setting, one.given.mean_logprob, "none", None, why, None, None, ())


def _with_verdict(one: Answered, reading: Scored, likeness: float | None, style: CoordinateStyle) -> ScoredAnswer:
    kind, score, verdict = _verdict(reading, likeness)
    question = normalize_tags(one.sample.question, style)
    return ScoredAnswer(
        sample=one.sample,
        text=one.given.text,
        setting=one.setting,
        mean_logprob=one.given.mean_logprob,
        kind=kind,
        score=score,
        verdict=f"{verdict}; cut by its token budget" if one.given.finish_reason == "length" else verdict,
        true=reading.item.answer if reading.item else None,
        stated=reading.parsed,
        named=(("question", question), ("reference", reading.answer), ("model", reading.text)),
    )


def _verdict(reading: Scored, likeness: float | None) -> tuple[Kind, float | None, str]:
    if reading.item is not None:
        right = reading.item.answer
        if reading.parsed is None:
            return "closed", 0.0, f"states no answer; right is {right}"
        return "closed", float(reading.correct), "right" if reading.correct else f"says {reading.parsed}, right is {right}"
    if reading.true_tags:
        counts = match_tags(reading.predicted_tags, reading.true_tags)
        words = f"{counts.matched} of {counts.true} objects found, {counts.predicted - counts.matched} named that are not there"
        return "tags", counts.f1, words + (f", {reading.malformed} malformed tags" if reading.malformed else "")
    if likeness is None:
        return "none", None, "open answer"
    return "words", likeness, f"ROUGE_L {likeness:.3f}"


def confusion_counts(
    pairs: Sequence[tuple[str, str | None]],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """True classes, stated classes ("unparsed" last, where there are any), counts[true][stated]. pairs: (true, stated)."""
    names = sorted({name for pair in pairs for name in pair if name is not None})
    stated: list[str | None] = [*names, *([None] if any(said is None for _, said in pairs) else [])]
    true = [name for name in names if any(right == name for right, _ in pairs)]
    counts = tuple(tuple(sum(pair == (right, said) for pair in pairs) for said in stated) for right in true)
    return tuple(true), tuple(name or "unparsed" for name in stated), counts
