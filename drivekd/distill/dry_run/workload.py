"""What a run will do, counted by walking its data order: tokens, pictures to read and encode, questions to teachers.

A step costs the same whenever it comes, but for what is done once and then kept: pictures are read and encoded, teachers are
asked. So a plan needs the mean step, and how often the run does each of those three. F features of a step, C counted steps
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivekd.data.packs import Pack, micro_batches
from drivekd.sample import CAPABILITIES, Sample

MOST_VISITS = 200_000  # packs that are walked through, about ten seconds; later steps are counted as the last half of these


@dataclass(frozen=True)
class Order:
    """How a run goes through its data.

    epoch_steps: steps until every pack was seen. packs_of(step); length: tokens of a pack; asked: the (sample, teacher) questions
    of a step whose answers a disk cache keeps. pictures_kept, features_kept: how many pictures, and features of pictures, stay in
    memory. vision_trains: the student reads every picture anew. vision_on_disk: features outlive memory.
    """

    steps: int
    epoch_steps: int
    micro_batch_size: int
    packs_of: Callable[[int], list[Pack]]
    length: Callable[[Pack], int]
    asked: Callable[[int, Sequence[Sample]], Iterable[Hashable]]
    pictures_kept: int
    features_kept: int
    vision_trains: bool
    vision_on_disk: bool


@dataclass(frozen=True)
class Workload:
    """Of the whole run: tokens, pictures read from disk, pictures encoded by frozen towers, and new questions to teachers.

    features [C, F]: what a step's cost depends on, for the first C steps. longest_step: the one of them with the largest
    micro-batch, longest_tokens: of its longest pack. images: distinct pictures seen in them.
    """

    tokens: float
    reads: float
    encodes: float
    asks: float
    features: NDArray[np.float64]
    longest_step: int
    longest_tokens: int
    images: int


def count(order: Order) -> Workload:
    """Walk through the run, or through two epochs and MOST_VISITS packs of it at most."""
    visits = len(order.packs_of(0))
    num_counted = max(1, min(order.steps, 2 * order.epoch_steps, MOST_VISITS // visits))
    walk = _Walk(order)
    events = np.array([walk.step(step) for step in range(num_counted)], np.float64)  # [C, (tokens, reads, encodes, asks)]
    rest = order.steps - num_counted
    tokens, reads, encodes, asks = events.sum(0) + rest * events[num_counted // 2 :].mean(0)
    return Workload(
        float(tokens), float(reads), float(encodes), float(asks), np.array(walk.features), *walk.longest, len(walk.seen)
    )


def representative(features: NDArray[np.float64], num_steps: int) -> list[int]:
    """Steps whose mean features [F] come nearest to the mean of all [C, F]: chosen one by one, each the best addition.

    Whatever costs are a linear function of the features, their mean over these few steps is that of the run.
    """
    scale = features.std(0)
    centred = (features - features.mean(0))[:, scale > 0] / scale[scale > 0]
    chosen: list[int] = []
    total = np.zeros(centred.shape[1])
    for _ in range(min(num_steps, len(features))):
        distances = np.linalg.norm(total + centred, axis=1)
        distances[chosen] = math.inf
        chosen.append(int(distances.argmin()))
        total += centred[chosen[-1]]
    return chosen


class _Walk:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._pictures, self._encoded = _Recent(order.pictures_kept), _Recent(order.features_kept)
        self._answered: set[Hashable] = set()
        self.seen: set[Path] = set()
        self.features: list[list[float]] = []
        self._largest = 0
        self.longest = (0, 0)

    def step(self, step: int) -> tuple[int, int, int, int]:
        """Tokens, reads, encodes, new questions."""
        order = self._order
        packs = order.packs_of(step)
        samples = [sample for pack in packs for sample in pack]
        chunks = micro_batches(packs, order.micro_batch_size, order.length)
        padded = [len(chunk) * max(map(order.length, chunk)) for chunk in chunks]
        if max(padded) > self._largest:
            self._largest = max(padded)
            self.longest = (step, max(map(order.length, packs)))
        tokens = sum(map(order.length, packs))
        images = dict.fromkeys(image for pack in packs for image in pack[0].images)
        by_capability = [sum(sample.capability == name for sample in samples) for name in CAPABILITIES]
        labelled = sum(sample.answer is not None for sample in samples)
        self.features.append([len(chunks), sum(padded), tokens, len(images), labelled, *by_capability])
        reads, encodes = self._look(images)
        questions = set(order.asked(step, samples)) - self._answered
        self._answered |= questions
        return tokens, reads, encodes, len(questions)

    def _look(self, images: Iterable[Path]) -> tuple[int, int]:
        reads = encodes = 0
        for image in images:
            kept = self._encoded.touch(image) or (self._order.vision_on_disk and image in self.seen)
            self.seen.add(image)
            encodes += not kept
            if not kept or self._order.vision_trains:
                reads += not self._pictures.touch(image)
        return reads, encodes


class _Recent:
    """The names of the `size` things used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, None] = OrderedDict()

    def touch(self, name: Hashable) -> bool:
        """Whether it is there; afterwards it is."""
        found = name in self._kept
        self._kept[name] = None
        self._kept.move_to_end(name)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return found
