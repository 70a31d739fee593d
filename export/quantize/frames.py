"""Which frames of a file of records weights are rounded on, and which are kept back to see what that cost.

A frame is a picture with all of its questions, packed as training packs them: one image, then every question and answer behind
it, each seeing the image and itself alone. One of a record's cameras is taken: more would add prompt, not other activations, and
a tile takes a CPU seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from drivekd.data.batch import Batch, Collator
from drivekd.data.packs import Pack, frame_packs
from drivekd.data.readers import check_images, read_samples
from drivekd.errors import UsageError
from drivekd.processor import Processor
from drivekd.sample import Sample

MOST_FRAMES = 32  # a 448 px tile takes InternViT-300M 5 to 7 s on two cores
MOST_TOKENS = 8192  # from here on more are worth little (docs/export.md)
FRAME_TOKENS = 1024
HELD_OUT_QUESTIONS = 48
HELD_OUT_SHARE = 4  # one scene in so many is kept back, or one frame where there are no scenes


Frame: TypeAlias = list[Sample]  # all of one tuple of pictures


@dataclass(frozen=True)
class Frames:
    """chosen: to round on, one pack a batch. held_out: labelled records of others, one camera each. kind: "scenes" or "frames",
    of which both share none; kept_back: all pictures of those. collate: gives a batch its pixels."""

    source: Path
    chosen: tuple[Batch, ...]
    held_out: tuple[Sample, ...]
    kind: str
    kept_back: frozenset[Path]
    collate: Collator

    @property
    def tokens(self) -> int:
        """Of the chosen frames."""
        return sum(batch.num_tokens for batch in self.chosen)


def read_frames(records: Path, processor: Processor, *, count: int = MOST_FRAMES, seed: int = 0) -> Frames:
    """Draw frames until there are `count`, or MOST_TOKENS tokens. Raises DataError naming file, record and field; UsageError when
    no record has an image."""
    by_frame: dict[tuple[Path, ...], Frame] = {}
    for sample in read_samples(records, unlabelled=True):
        by_frame.setdefault(sample.images, []).append(sample)
    rng = np.random.default_rng(seed)
    seen = [frame for frame in by_frame.values() if frame[0].images]
    if not seen:
        raise UsageError(f"{records}: no record has an image; calibration needs what the camera sees")
    kept_back, rest, kind = _apart([seen[i] for i in rng.permutation(len(seen)).tolist()])
    chosen, collate = _chosen([_one_camera(frame, rng) for frame in rest], processor, count, seed)
    held_out = _held_out([_one_camera(frame, rng) for frame in kept_back])
    check_images([*(sample for batch in chosen for sample in batch.samples), *held_out])
    pictures = frozenset(path for frame in kept_back for path in frame[0].images)
    return Frames(records, tuple(chosen), held_out, kind, pictures, collate)


def _apart(frames: Sequence[Frame]) -> tuple[list[Frame], list[Frame], str]:
    """Frames to keep back, the others, and what they share none of.

    A quarter of the scenes is kept back; where fewer than four are told, a quarter of the frames that share no picture with the
    rest. None is where all hang together.
    """
    groups, kind = _groups(frames, _scenes), "scenes"
    if len(groups) < HELD_OUT_SHARE:
        groups, kind = _groups(frames, _pictures), "frames"
    elif not any(sample.scene for frame in frames for sample in frame):
        kind = "frames"
    kept = len(groups) // HELD_OUT_SHARE
    return [frame for group in groups[:kept] for frame in group], [frame for group in groups[kept:] for frame in group], kind


def _groups(frames: Sequence[Frame], places: Callable[[Frame], set[Path | str]]) -> list[list[Frame]]:
    """Frames that share a place, directly or through others, together."""
    leaders = list(range(len(frames)))

    def leader(number: int) -> int:
        while leaders[number] != number:
            leaders[number] = number = leaders[leaders[number]]
        return number

    first: dict[Path | str, int] = {}
    for number, frame in enumerate(frames):
        for place in places(frame):
            leaders[leader(number)] = leader(first.setdefault(place, number))
    groups: dict[int, list[Frame]] = {}
    for number, frame in enumerate(frames):
        groups.setdefault(leader(number), []).append(frame)
    return list(groups.values())


def _scenes(frame: Frame) -> set[Path | str]:
    return _pictures(frame) | {sample.scene for sample in frame if sample.scene}


def _pictures(frame: Frame) -> set[Path | str]:
    return set(frame[0].images)


def _one_camera(frame: Frame, rng: np.random.Generator) -> Frame:
    camera = int(rng.integers(len(frame[0].images)))
    return [replace(sample, images=(sample.images[camera],)) for sample in frame]


def _chosen(frames: Sequence[Frame], processor: Processor, count: int, seed: int) -> tuple[list[Batch], Collator]:
    collate = Collator(processor)
    batches: list[Batch] = []
    for frame in frames[:count]:
        packs: list[Pack] = frame_packs(frame, collate.num_tokens, FRAME_TOKENS, seed)
        batches.append(collate(packs[:1]))
        if sum(batch.num_tokens for batch in batches) >= MOST_TOKENS:
            break
    return batches, collate


def _held_out(frames: Sequence[Frame]) -> tuple[Sample, ...]:
    """Some labelled questions of each frame in turn, so that many frames are seen."""
    labelled = [[sample for sample in frame if sample.answer] for frame in frames]
    turns = max(map(len, labelled), default=0)
    dealt = [frame[turn] for turn in range(turns) for frame in labelled if turn < len(frame)]
    return tuple(dealt[:HELD_OUT_QUESTIONS])
