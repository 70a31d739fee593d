"""What the tests over both families and dialects share: greedy runs, and frames of six cameras of which some change."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.images import RGBImage
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.triad import Branch, branch, decode

STEPS = 10
NO_TOKEN = -1  # stops nothing
ATOL = 1e-4  # docs/design.md, "Exactness and tolerances"; found 1e-5
NUM_CAMERAS = 6

Images = dict[str, RGBImage]


def suffixes(model: StartedModel) -> list[list[int]]:
    return [model.prompts.suffix(question) for question in model.questions().values()]


def free_run(model: StartedModel, images: Images, **options: Any) -> NDArray[np.int64]:
    """Greedy tokens [N, B]."""
    logits, cache = branch(model.decoder, model.read(images), suffixes(model), **options)
    return np.asarray([state.tokens for state in greedy(model, logits, cache, STEPS)]).T


def greedy(model: StartedModel, logits: Any, cache: Cache, steps: int, stop_id: int = NO_TOKEN) -> list[Branch]:
    return decode(
        model.decoder,
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


def read_anew(model: StartedModel, frame: Images) -> Cache:
    model.prefix.forget()
    return model.read(frame)


def image_starts(model: StartedModel, num_images: int) -> list[int]:
    """Where images begin in the ids, and where the ids end, found one by one."""
    ids, chat = model.prompts.prefix(num_images), model.manifest.chat
    starts, index = [], 0
    while index < len(ids):
        if ids[index] == model.prompts.image_token_id:
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
