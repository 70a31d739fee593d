"""K/V memory of a session in the dialect that writes in place: frames take no more of it and never write behind its end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from dialect_cases import NUM_CAMERAS, Images, assert_bits_equal, changed, image_starts
from dialect_exports import Exported

import drivekd.runtime.decoder.gqa as gqa_module
from drivekd.errors import RunnerError
from drivekd.runtime.decoder.arena import Arena, ArenaCache
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.triad import branch

pytestmark = pytest.mark.numerics


@pytest.fixture
def in_place(exported: Exported) -> Iterator[StartedModel]:
    with StartedModel(exported.bundle, threads=1, dialect="gqa") as model:
        model.decoder.reserve(3, 250)
        yield model


def drive(model: StartedModel, frame: Images, steps: int = 5) -> Cache:
    logits, cache = branch(model.decoder, model.read(frame), [[7] * 3, [8] * 5, [9]], room=steps)
    for step in range(steps):
        if step == 2:  # the second answer has ended
            logits, cache = logits[[0, 2]], cache.compact([0, 2])
        logits, cache = model.decoder.step(logits.argmax(axis=1).tolist(), cache)
    return cache


def test_frames_take_no_new_memory(in_place: StartedModel, frame: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the prefix nor for branches, nor for logits: all is where the first frame had it."""
    drive(in_place, frame)
    rng = np.random.default_rng(0)

    def refused(*args: Any, **options: Any) -> Any:
        raise AssertionError("new memory")

    monkeypatch.setattr(gqa_module, "new_arena", refused)
    monkeypatch.setattr(Arena, "like", refused)
    for _ in range(6):
        frame = changed(frame, rng.choice(list(frame), 2), rng)
        drive(in_place, frame)
        in_place.decoder.reserve(3, 250)
    in_place.prefix.forget()
    drive(in_place, dict(itertools.islice(frame.items(), 2)))


def test_branches_copy_what_changed(in_place: StartedModel, frame: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    columns: list[int] = []
    move = Arena.move

    def counted(arena: Arena, source: Arena, source_row: int, row: int, stop: int, start: int = 0) -> None:
        columns.append(stop - start)
        move(arena, source, source_row, row, stop, start)

    drive(in_place, frame)
    monkeypatch.setattr(Arena, "move", counted)
    starts = image_starts(in_place, NUM_CAMERAS)
    for first in (4, 5, 0):
        frame, before = changed(frame, list(frame)[first:], np.random.default_rng(first)), len(columns)
        in_place.decoder.read([[7], [8], [9]], in_place.read(frame).select([0] * 3, room=9))
        assert columns[before:] == [starts[-1] - starts[first]] * 3
    drive(in_place, frame)
    assert max(columns[before + 3 :]) <= 5 + 5, "an unchanged prefix was copied, or moved when a branch ended"


def test_more_may_be_reserved_while_a_prefix_is_kept(in_place: StartedModel, exported: Exported, frame: Images) -> None:
    """A longer question than ever, or more cameras: the prefix is neither lost nor read again."""
    few = dict(itertools.islice(frame.items(), 2))
    cache = in_place.read(few)
    in_place.decoder.reserve(4, 400)
    assert in_place.read(few) is cache
    found = cache.select([0] * 4, room=100)
    assert isinstance(found, ArenaCache)
    assert found.arena.reserved
    assert found.arena.capacity >= 400
    whole = in_place.read(frame)
    starts = image_starts(in_place, NUM_CAMERAS)
    assert in_place.prefix.counts["tokens_prefilled"] <= starts[-1] - starts[1]
    with StartedModel(exported.bundle, threads=1, dialect="gqa") as anew:
        assert_bits_equal(whole, anew.read(frame))


def test_the_prefix_of_an_older_frame_is_refused(in_place: StartedModel, frame: Images) -> None:
    older = in_place.read(frame)
    newer = in_place.read(changed(frame, ["camera_5"], np.random.default_rng(0)))
    with pytest.raises(RunnerError, match="spent"):
        branch(in_place.decoder, older, [[7]])
    branch(in_place.decoder, newer, [[7]])


def test_an_answer_that_overflows_its_memory_is_refused(in_place: StartedModel, frame: Images) -> None:
    """With numbers, and before the engine writes behind the end of a row."""
    prefix = in_place.read(dict(itertools.islice(frame.items(), 1)))
    logits, cache = branch(in_place.decoder, prefix, [[7]] * 3, room=9)
    calls = in_place.decoder.engine_calls
    for _ in range(256 - int(prefix.num_tokens[0]) - 1):
        logits, cache = in_place.decoder.step(logits.argmax(axis=1).tolist(), cache)
    with pytest.raises(RunnerError, match="holds 256 tokens a branch; 256 are read and 1 more make 257"):
        in_place.decoder.step([7] * 3, cache)
    assert in_place.decoder.engine_calls - calls == 256 - int(prefix.num_tokens[0]) - 1
