"""Which record each given answer belongs to.

An answer finds its record by id and question together, else by scene, frame and question (or the pictures, where no frame is
told); several alike match in their order. An id alone is not trusted where both sides have the question and it differs: DriveLM's
ids count the questions of one file, and another selection of the same frames has the same ids for others. Nor is anything where
both sides tell another scene or frame. A picture is known by its folder and name, since every scene may have its CAM_FRONT.jpg;
by its name alone where that is given once in the world.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from drivekd.answered import Answered
from drivekd.sample import Sample

from .given_texts import GivenText, picture_key, question_key

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
    places: dict[_Key, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        for key in _keys_of_sample(sample):
            places[key].append(place)
    waiting = {key: deque(found) for key, found in places.items()}
    found: dict[int, Answered] = {}
    unknown: list[str] = []
    for one in given:
        keys = [key for key in _keys_of_given(one) if key in waiting]
        place = next(
            (place for place in _free_places([waiting[key] for key in keys], found) if not _contradict(one, samples[place])), -1
        )
        if place < 0:
            unknown.append(f"{one.source}: {_why(one, [samples[place] for key in keys for place in places[key]], samples)}")
        else:
            found[place] = Answered(samples[place], one.given, one.setting, one.severity)
    unanswered = tuple(place for place in range(len(samples)) if place not in found)
    return Matched(tuple(sorted(found.items())), unanswered, tuple(unknown))


def _free_places(candidates: Sequence[deque[int]], taken: dict[int, Answered]) -> Iterator[int]:
    """The places that no answer has yet, queue by queue."""
    for queue in candidates:
        while queue and queue[0] in taken:
            queue.popleft()
        yield from (place for place in queue if place not in taken)


def _contradict(one: GivenText, sample: Sample) -> bool:
    """Whether both tell a scene or a frame, and not the same one. What was read out of an id says no more than the id."""
    if one.id and one.id == sample.id and one.index is None:
        return False
    told = ((one.scene, sample.scene), (one.frame, sample.frame))
    return any(given and known and given != known for given, known in told)


def _keys_of_sample(sample: Sample) -> Iterator[_Key]:
    question = question_key(sample.question)
    if sample.id:
        yield ("id", sample.id, question)
        yield ("id", sample.id)
    if sample.frame:
        yield ("frame", sample.scene, sample.frame, question)
    yield ("pictures", tuple(map(picture_key, sample.images)), question)


def _keys_of_given(one: GivenText) -> Iterator[_Key]:
    if one.id:
        yield ("id", one.id, one.question) if one.question else ("id", one.id)
    if one.question and one.frame:
        yield ("frame", one.scene, one.frame, one.question)
    if one.question and one.pictures:
        yield ("pictures", one.pictures, one.question)


def _why(one: GivenText, asking: Sequence[Sample], samples: Sequence[Sample]) -> str:
    """asking: the records with its question."""
    if any(not _contradict(one, sample) for sample in asking):
        return "its question has an answer already; the first one counts"
    if asking:
        told = f"scene {one.scene or 'not told'}, frame {one.frame or 'not told'}"
        return f"its question is asked, but of another scene or frame ({told})"
    if one.id and any(sample.id == one.id for sample in samples):
        return f"the records have id {one.id} with another question"
    return "no record has this question" + (f" ({one.id})" if one.id else "")
