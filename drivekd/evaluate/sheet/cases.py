"""Which single answers a page shows: the worst and the best, spread over capabilities and topics, with pictures and why.

Worst: lowest score, and of equal ones those that the model was surest of. Best: highest score, in the same order. Each capability
has its turn, each topic within it, and no frame is shown twice before every other one of the topic was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from drivekd.evaluate.sheet.document import Answer, Case, Mark, MarkOf, Picture
from drivekd.evaluate.sheet.scored import ScoredAnswer
from drivekd.evaluate.sheet.thumbnails import Thumbnails
from drivekd.sample import CAPABILITIES, Sample
from drivekd.tags import find_tags

NUM_CASES = 12  # of each kind
AROUND = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
MOST_LETTERS = 1_200  # of one text on a page; predictions.jsonl has the rest


def worst_and_best(answers: Sequence[ScoredAnswer], *, most: int = NUM_CASES) -> tuple[list[ScoredAnswer], list[ScoredAnswer]]:
    """The two lists; what has no score is in neither, what is right not among the worst, nor what is wrong among the best."""
    rated = [one for one in answers if one.score is not None]
    worst = sorted((one for one in rated if (one.score or 0.0) < 1), key=lambda one: (one.score, -one.surety))
    best = sorted((one for one in rated if (one.score or 0.0) > 0), key=lambda one: (-(one.score or 0.0), -one.surety))
    chosen = in_turns(worst, most)
    keys = {id(one) for one in chosen}
    return chosen, in_turns([one for one in best if id(one) not in keys and (one.score or 0.0) >= 0.5], most)


def in_turns(ranked: Sequence[ScoredAnswer], most: int) -> list[ScoredAnswer]:
    """The first ones, taken in turns from capabilities and, within each, from topics; frames that were not shown come first."""
    queues: dict[str, dict[str, list[ScoredAnswer]]] = defaultdict(lambda: defaultdict(list))
    for one in ranked:
        queues[one.sample.capability][one.sample.topic].append(one)
    chosen: list[ScoredAnswer] = []
    frames: set[tuple[object, ...]] = set()
    while len(chosen) < most and any(queues.values()):
        for capability in CAPABILITIES:
            topics = queues.get(capability)
            if not topics or len(chosen) >= most:
                continue
            topic = next(iter(topics))
            waiting = topics.pop(topic)
            index = next((i for i, one in enumerate(waiting[:200]) if one.sample.images not in frames), 0)
            one = waiting.pop(index)
            frames.add(one.sample.images)
            chosen.append(one)
            if waiting:
                topics[topic] = waiting  # at the end: its next turn is behind all others'
    return chosen


def case_of(answers: Sequence[tuple[str, ScoredAnswer]], pictures: Thumbnails) -> Case:
    """One question with the answers of one or several models. answers: who, and what; all are to the same question."""
    sample = answers[0][1].sample
    texts = dict.fromkeys(named for _, one in answers for named in one.named)  # question and reference are the same for all
    shown = [_with_marks(picture, list(texts)) for picture in pictures.of(sample.images, sample.cameras)]
    return Case(
        source=sample.source,
        where=_where(sample),
        capability=sample.capability,
        topic=sample.topic,
        question=_cut(sample.question),
        reference=_cut(sample.answer or ""),
        answers=tuple(Answer(who, _cut(one.text), one.verdict, one.is_good) for who, one in answers),
        pictures=tuple(sorted(shown, key=_place)),
    )


def _where(sample: Sample) -> str:
    """Scene and frame, where the record's name does not hold them."""
    names = {"scene": sample.scene, "frame": sample.frame}
    return ", ".join(f"{what} {name}" for what, name in names.items() if name and name not in sample.source)


def _cut(text: str) -> str:
    if len(text) <= MOST_LETTERS:
        return text
    return f"{text[:MOST_LETTERS]} … ({len(text) - MOST_LETTERS:,} more letters in predictions.jsonl)"


def _place(picture: Picture) -> int:
    """As a person sees them around the car: left, front, right, then the same behind; unknown cameras keep their order."""
    return AROUND.index(picture.camera) if picture.camera in AROUND else len(AROUND)


def _with_marks(picture: Picture, texts: Sequence[tuple[MarkOf, str]]) -> Picture:
    """The tags of question, true answer and models' answers, on the picture of their camera."""
    marks = tuple(
        Mark(f"{tag.object_id} of the {of}", tag.x, tag.y, of)
        for of, text in texts
        for tag in find_tags(text)
        if tag.camera == picture.camera
    )
    return replace(picture, marks=marks)
