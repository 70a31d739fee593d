"""What the tests over both families and dialects share: greedy runs, and frames of six cameras of which some change."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.images import RGBImage
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.session.session import Session
from drivekd.runtime.session.triad import Branch, branch, decode

STEPS = 10
NO_TOKEN = -1  # stops nothing
ATOL = 1e-4  # docs/design.md, "Exactness and tolerances"; found 1e-5
NUM_CAMERAS = 6

Images = dict[str, RGBImage]


def read(session: Session, frame: Images) -> Cache:
    cache = session.prefix.read(frame, Deadline())
    assert cache is not None
    return cache


def suffixes(session: Session) -> list[list[int]]:
    return [session.prompts.suffix(question) for question in session.questions().values()]


def free_run(session: Session, images: Images, **options: Any) -> NDArray[np.int64]:
    """Greedy tokens [N, B]."""
    logits, cache = branch(session.decoder, read(session, images), suffixes(session), **options)
    return np.asarray([state.tokens for state in greedy(session, logits, cache, STEPS)]).T


def greedy(session: Session, logits: Any, cache: Cache, steps: int, stop_id: int = NO_TOKEN) -> list[Branch]:
    return decode(
        session.decoder,
        logits,
        cache,
        stop_id=stop_id,
        max_new_tokens=steps,
        deadline=Deadline(),
        on_token=lambda row, state: None,
    )


def other_image(image: RGBImage, rng: np.random.Generator) -> RGBImage:
    return np.roll(image, int(rng.integers(1, 20)), axis=1) ^ rng.integers(1, 255, 3, np.uint8)


def changed(frame: Images, cameras: Any, rng: np.random.Generator) -> Images:
    return {name: other_image(tile, rng) if name in cameras else tile for name, tile in frame.items()}


def read_anew(session: Session, frame: Images) -> Cache:
    session.prefix.forget()
    return read(session, frame)


def image_starts(session: Session, num_images: int) -> list[int]:
    """Where images begin in the ids, and where the ids end, found one by one."""
    ids, chat = session.prompts.prefix(num_images), session.manifest.chat
    starts, index = [], 0
    while index < len(ids):
        if ids[index] == session.prompts.image_token_id:
            starts.append(index)
            index += chat.tokens_per_image
        else:
            index += 1
    assert len(starts) == num_images
    return [*starts, len(ids)]


def assert_bits_equal(found: Cache, expected: Cache) -> None:
    assert found.num_tokens.tolist() == expected.num_tokens.tolist()
    assert found.next_positions.tolist() == expected.next_positions.tolist()
    for a, b in zip(found.kv(0), expected.kv(0), strict=True):
        assert np.array_equal(a, b)
