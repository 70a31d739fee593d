"""The same question in several runs: told by what it is, not by where it stands, so that order and extra records do no harm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from drivekd.evaluate.sheet.scored import ScoredAnswer

Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True)
class Matched:
    """questions: for each question that all runs answered, its answers in the order of the runs. unmatched: how many of each
    run's questions another run did not answer."""

    questions: tuple[tuple[ScoredAnswer, ...], ...]
    unmatched: tuple[int, ...]


def match(runs: Sequence[Sequence[ScoredAnswer]]) -> Matched:
    """Find the questions that all runs have, in the order of the first. A question that stands twice is matched twice."""
    by_key = [_by_key(run) for run in runs]
    shared = [key for key in by_key[0] if all(key in other for other in by_key[1:])]
    questions = tuple(tuple(run[key] for run in by_key) for key in shared)
    return Matched(questions, tuple(len(run) - len(shared) for run in by_key))


def _by_key(answers: Sequence[ScoredAnswer]) -> dict[Key, ScoredAnswer]:
    seen: Counter[Key] = Counter()
    found = {}
    for one in answers:
        sample = one.sample
        images = tuple(path.name for path in sample.images)  # folders differ between machines
        key: Key = (one.setting, sample.id, sample.scene, sample.frame, sample.capability, sample.question, sample.answer, images)
        seen[key] += 1
        found[(*key, seen[key])] = one
    return found
