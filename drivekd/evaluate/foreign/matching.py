"""Which record each given answer belongs to.

An answer finds its record by id and question together, else by scene, frame and question (or the names of the pictures, where no
frame is told); several alike match in their order. An id alone is not trusted where both sides have the question and it differs:
DriveLM's ids count the questions of one file, and another selection of the same frames has the same ids for others.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from drivekd.answered import Answered
from drivekd.sample import Sample

from .given_texts import GivenText, question_key

_Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True)
class Matched:
    """answered: (place of the record, answer) in the records' order. unanswered: places of records without an answer.

    unknown: answers that no record is for, each with why.
    """

    answered: tuple[tuple[int, Answered], ...]
    unanswered: tuple[int, ...]
    unknown: tuple[str, ...]


def match(given: Sequence[GivenText], samples: Sequence[Sample]) -> Matched:
    """Match answers of one picture setting with records."""
    waiting: dict[_Key, deque[int]] = defaultdict(deque)
    for place, sample in enumerate(samples):
        for key in _keys_of_sample(sample):
            waiting[key].append(place)
    found: dict[int, Answered] = {}
    unknown: list[str] = []
    for one in given:
        candidates = [waiting[key] for key in _keys_of_given(one) if key in waiting]
        place = next(_free_places(candidates, found), -1)
        if place < 0:
            unknown.append(f"{one.source}: {_why(one, bool(candidates), samples)}")
        else:
            found[place] = Answered(samples[place], one.given, one.setting, one.severity)
    unanswered = tuple(place for place in range(len(samples)) if place not in found)
    return Matched(tuple(sorted(found.items())), unanswered, tuple(unknown))


def _free_places(candidates: Sequence[deque[int]], taken: dict[int, Answered]) -> Iterator[int]:
    """The first place of each queue that no answer has yet."""
    for queue in candidates:
        while queue and queue[0] in taken:
            queue.popleft()
        if queue:
            yield queue[0]


def _keys_of_sample(sample: Sample) -> Iterator[_Key]:
    question = question_key(sample.question)
    if sample.id:
        yield ("id", sample.id, question)
        yield ("id", sample.id)
    if sample.frame:
        yield ("frame", sample.scene, sample.frame, question)
    yield ("pictures", tuple(image.name for image in sample.images), question)


def _keys_of_given(one: GivenText) -> Iterator[_Key]:
    if one.id:
        yield ("id", one.id, one.question) if one.question else ("id", one.id)
    if one.question and one.frame:
        yield ("frame", one.scene, one.frame, one.question)
    if one.question and one.pictures:
        yield ("pictures", one.pictures, one.question)


def _why(one: GivenText, is_double: bool, samples: Sequence[Sample]) -> str:
    if is_double:
        return "its question has an answer already; the first one counts"
    if one.id and any(sample.id == one.id for sample in samples):
        return f"the records have id {one.id} with another question"
    return "no record has this question" + (f" ({one.id})" if one.id else "")
