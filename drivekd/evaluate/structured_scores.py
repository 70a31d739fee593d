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
from drivekd.evaluate.scores import EvaluationReport
from drivekd.runtime.answers.schemas import default_schemas
from drivekd.sample import Sample
from drivekd.structured.pictures import PictureSizes
from drivekd.structured.targets import structured_target

_NULL = "null"
NOTHING = "nothing"  # a list without objects says that there is none


def structured_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Those whose own structured answer states something to compare with. Raises DataError when there is none."""
    found = [sample for sample in samples if true_key(sample) is not None]
    if not found:
        raise DataError(
            f"none of {len(samples)} samples has a structured answer, of its own or in its text, that names actions or objects"
        )
    return found


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
    """Whether an answer to one of `structured_samples` states what its record does."""
    return stated_key(one.sample.capability, one.given.text) == true_key(one.sample)


def structured_report(
    answered: Sequence[Answered], *, answerer: str, digest: str, not_asked: Mapping[str, int], seed: int
) -> EvaluationReport:
    """Accuracy by capability and topic, with the commonest answer's beside it. answered: to `structured_samples`."""
    keys = [true_key(one.sample) for one in answered]
    classes: dict[str, dict[str, str]] = {}
    for one, key in zip(answered, keys, strict=True):
        classes.setdefault(one.sample.capability, {})[str(key)] = str(key)
    scored = [_scored(one, str(key), classes[one.sample.capability]) for one, key in zip(answered, keys, strict=True)]
    cut = [one.sample.capability for one in answered if one.given.finish_reason == "length"]
    return EvaluationReport(
        answerer=answerer,
        digest=digest,
        images=answered[0].setting,
        seed=seed,
        resamples=metrics.NUM_RESAMPLES,
        scores=tuple(score_rows(scored, [], seed)),
        tags=(),
        predictions=(),
        not_asked=dict(not_asked),
        truncated={name: cut.count(name) for name in sorted(set(cut))},
    )


def _scored(one: Answered, key: str, classes: Mapping[str, str]) -> Scored:
    item = Item(f"{one.sample.capability}/{one.sample.topic}/structured", classes, key, cluster(one.sample))
    parsed = stated_key(one.sample.capability, one.given.text)
    return Scored(one.sample, one.given, item, parsed, one.given.text, one.sample.answer or "", (), (), 0)


def _said(*words: str) -> str | None:
    """Joined; None where all of them are null, which says nothing."""
    return None if set("; ".join(words).replace(";", " ").split()) == {_NULL} else "; ".join(words)


def _words(value: object) -> str:
    """Case and spaces apart; null is a word of its own."""
    return _NULL if value is None else " ".join(str(value).lower().split())
