"""How many validation questions the student answers rightly, by the rules that `drivekd eval` scores with.

Cross-entropy looks at every token of an answer; what the car acts on is a letter, a yes or no, or where an object is. Answers are
greedy, cut where the contract cuts them. Asked: choice and yes/no questions (right or wrong) and open ones whose true answer has
tags (their F1).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import torch
from transformers import PreTrainedModel

from drivekd.answered import Answered, Given
from drivekd.contract import Contract
from drivekd.errors import DataError
from drivekd.evaluate.answering import Budgets
from drivekd.evaluate.answering.model_answerer import ModelAnswerer
from drivekd.evaluate.metrics.tags import match_tags
from drivekd.evaluate.scored import label_class, scored_from
from drivekd.processor import Processor
from drivekd.sample import CAPABILITIES, Sample

BATCH_SIZE = 16  # questions that are decoded at once, beside the optimizer's state


def accuracy_samples(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most `count` of the samples that can be scored, as many of each capability as there are; the same for the same seed.

    Raises DataError when none can be scored.
    """
    known = [sample for sample in samples if _can_be_scored(sample)]
    if not known:
        raise DataError(
            f"data.validation: none of {len(samples)} records is a choice or yes/no question, or has tags in its answer, so that "
            "training.validate_on: accuracy has nothing to count; use validate_on: loss"
        )
    random.Random(seed).shuffle(known)
    by_capability = [[sample for sample in known if sample.capability == name] for name in CAPABILITIES]
    in_turn = [sample for sample in chain.from_iterable(zip_longest(*by_capability)) if sample is not None]
    chosen = {id(sample) for sample in in_turn[:count]}
    return [sample for sample in samples if id(sample) in chosen]


def summed_scores(
    student: PreTrainedModel, processor: Processor, contract: Contract, samples: Sequence[Sample], compute_dtype: torch.dtype
) -> float:
    """The sum over samples of 0 (wrong) to 1. student: in its eval mode. Raises DataError naming a record that no one can ask."""
    budgets = Budgets.chosen(None, contract.max_new_tokens, "the contract")
    answerer = ModelAnswerer(student, processor, budgets, batch_size=BATCH_SIZE, cameras=contract.cameras)
    with torch.autocast(student.device.type, compute_dtype, enabled=compute_dtype != torch.float32):
        given = answerer.answers(samples)
    return sum(scores(samples, given))


def scores(samples: Sequence[Sample], given: Sequence[Given]) -> Iterator[float]:
    """Of each answer, as drivekd.evaluate.scored reads it."""
    for one in scored_from([Answered(sample, answer) for sample, answer in zip(samples, given, strict=True)]):
        yield match_tags(one.predicted_tags, one.true_tags).f1 if one.is_open else float(one.correct)


def _can_be_scored(sample: Sample) -> bool:
    """A label that states no class trains, but nothing can be counted against it."""
    if sample.answer is None:
        return False
    if sample.answer_form != "open":
        return label_class(sample) is not None
    return bool(scored_from([Answered(sample, Given(""))])[0].true_tags)
