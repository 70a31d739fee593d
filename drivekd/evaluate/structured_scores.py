"""Answers as JSON are right when they say what the record's own structured answer says first.

planning      the same set of actions
reasoning     the same first object
perception    the same objects by category and status; where they are is not compared, nor in what order they come

The record's structured answer is its own (`structured`), or what its text says for the schema (drivekd/structured/targets.py). An
answer that is null there states nothing; it is wrong, and counted among the unparsed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from drivekd.answered import Answered
from drivekd.errors import DataError
from drivekd.evaluate import metrics
from drivekd.evaluate.metrics import Item
from drivekd.evaluate.score_rows import score_rows
from drivekd.evaluate.scored import Scored, cluster
from drivekd.evaluate.scores import EvaluationReport, Overlap
from drivekd.runtime.answers.schemas import default_schemas
from drivekd.sample import Sample
from drivekd.structured.pictures import PictureSizes
from drivekd.structured.targets import structured_target

_NULL = "null"
NOTHING = "nothing"  # a list without objects says that there is none


def why_not_structured(sample: Sample) -> str | None:
    """Why a structured answer to it cannot be scored, for counting; None when it can."""
    return None if true_key(sample) is not None else "without actions or objects in their answer, so without a structured one"


def true_key(sample: Sample) -> str | None:
    """What a right answer states; None where the record states nothing."""
    text = structured_target(sample, default_schemas(())[sample.capability], PictureSizes())
    return None if text is None else stated_key(sample.capability, text)


def stated_key(capability: str, text: str) -> str | None:
    """What an answer states, for comparing; None where it states nothing, or is no JSON of its schema."""
    try:
        answer: Any = json.loads(text)
        if capability == "planning":
            actions = answer["actions"]
            return ", ".join(sorted(set(actions))) if isinstance(actions, list) and actions else None
        if answer["objects"] is None:
            return None
        if capability == "reasoning":
            return NOTHING if not answer["objects"] else _said(_words(answer["objects"][0]["object"]))
        kinds = sorted(f"{_words(one['category'])} {_words(one['status'])}" for one in answer["objects"])
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return NOTHING if not kinds else _said(*kinds)


def is_right(one: Answered) -> bool:
    """Whether an answer to a sample that states something states what its record does."""
    return stated_key(one.sample.capability, one.given.text) == true_key(one.sample)


def structured_report(
    answered: Sequence[Answered],
    *,
    answerer: str,
    digest: str,
    reference: Sequence[Sample] = (),
    not_asked: Mapping[str, int],
    overlapping: Sequence[bool] | None = None,
    overlap_with: str = "",
    seed: int,
) -> EvaluationReport:
    """Accuracy by capability and topic, with the commonest answer's beside it. answered: to samples that state something.

    reference, overlapping, overlap_with: as drivekd.evaluate.scoring.score has them.
    """
    if not answered:
        raise DataError("there are no answers to score")
    items = _items([*reference, *(one.sample for one in answered)])
    of_reference, of_answered = items[: len(reference)], items[len(reference) :]
    stated = [item for item in of_reference if item is not None]
    scored = [_scored(one, item) for one, item in zip(answered, of_answered, strict=True) if item is not None]
    overlap = None
    if overlapping is not None:
        kept = [one for one, seen in zip(scored, overlapping, strict=True) if not seen]
        rows = tuple(score_rows(kept, stated, seed))
        overlap = Overlap(overlap_with, len(scored), len(scored) - len(kept), rows, metrics=())
    cut = [one.sample.capability for one in answered if one.given.finish_reason == "length"]
    return EvaluationReport(
        answerer=answerer,
        digest=digest,
        images=answered[0].setting,
        seed=seed,
        resamples=metrics.NUM_RESAMPLES,
        scores=tuple(score_rows(scored, stated, seed)),
        tags=(),
        predictions=(),
        not_asked=dict(not_asked),
        truncated={name: cut.count(name) for name in sorted(set(cut))},
        overlap=overlap,
    )


def _items(samples: Sequence[Sample]) -> list[Item | None]:
    """What each states, among all that its capability's samples state; None where it states nothing."""
    keys = [true_key(sample) for sample in samples]
    classes: dict[str, dict[str, str]] = {}
    for sample, key in zip(samples, keys, strict=True):
        if key is not None:
            classes.setdefault(sample.capability, {})[key] = key
    return [
        None
        if key is None
        else Item(f"{sample.capability}/{sample.topic}/structured", classes[sample.capability], key, cluster(sample))
        for sample, key in zip(samples, keys, strict=True)
    ]


def _scored(one: Answered, item: Item) -> Scored:
    parsed = stated_key(one.sample.capability, one.given.text)
    return Scored(one.sample, one.given, item, parsed, one.given.text, one.sample.answer or "", (), (), 0)


def _said(*words: str) -> str | None:
    """Joined; None where all of them are null, which says nothing."""
    return None if set("; ".join(words).replace(";", " ").split()) == {_NULL} else "; ".join(words)


def _words(value: object) -> str:
    """Case and spaces apart; null is a word of its own."""
    return _NULL if value is None else " ".join(str(value).lower().split())
