"""However K/V is read and kept: in chunks, grown, copied, without the rows that ended; in both families and dialects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dialect_cases import ATOL, STEPS, Images, free_run, greedy, suffixes

import drivekd.runtime.session.prefix as prefix_module
from drivekd.errors import UsageError
from drivekd.runtime.decoder.arena import ArenaCache
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.triad import branch

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_a_prefix_read_in_chunks_is_the_same(model: StartedModel, images: Images, chunk: int, monkeypatch: Any) -> None:
    tokens = free_run(model, images)
    whole = model.forced_logits(images, list(model.questions().values()), tokens)
    model.prefix.forget()
    monkeypatch.setattr(prefix_module, "CHUNK", chunk)
    parts = model.forced_logits(images, list(model.questions().values()), tokens)
    assert np.abs(parts - whole).max() <= ATOL


def test_no_room_only_costs_copies(model: StartedModel, images: Images) -> None:
    """An arena that is full at the first step grows on the way; tensors that grow anyway do not care."""
    prefix = model.read(images)
    questions = suffixes(model)
    runs = []
    for room in (-max(map(len, questions)), 0, 1, STEPS, 200):
        logits, cache = branch(model.decoder, prefix, questions, room=room)
        capacity = cache.arena.capacity if isinstance(cache, ArenaCache) else 0
        steps = [logits]
        for _ in range(STEPS):
            logits, cache = model.decoder.step([1, 2, 3], cache)
            steps.append(logits)
        runs.append(np.stack(steps))
        if isinstance(cache, ArenaCache) and room == 200:
            assert cache.arena.capacity == capacity, "it grew without need"
    for run in runs[1:]:
        assert np.abs(run - runs[0]).max() <= ATOL


@pytest.mark.parametrize("going", [[0], [1], [2], [0, 1], [0, 2], [1, 2]])
def test_rows_that_go_on_do_not_notice(model: StartedModel, images: Images, going: list[int]) -> None:
    prefix, questions = model.read(images), suffixes(model)
    assert len({len(question) for question in questions}) > 1, "rows of different lengths"
    _, cache = branch(model.decoder, prefix, questions)
    _, cache = model.decoder.step([5, 6, 7], cache)
    lengths = cache.num_tokens[going].tolist()
    rows = [cache.kv(row) for row in going]
    compacted = cache.compact(going)
    assert compacted.num_tokens.tolist() == lengths
    for row, expected in enumerate(rows):
        for found, tensor in zip(compacted.kv(row), expected, strict=True):
            assert np.array_equal(found, tensor)
    found, _ = model.decoder.step([8] * len(going), compacted)
    _, again = branch(model.decoder, prefix, questions)
    _, again = model.decoder.step([5, 6, 7], again)
    expected_logits, _ = model.decoder.step([8, 8, 8], again)
    assert np.abs(found - expected_logits[going]).max() <= ATOL


def test_a_branch_that_ended_leaves_the_batch(model: StartedModel, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode with a token of one answer as the end: the batch shrinks, the others go on as they would."""
    tokens = free_run(model, images)
    stop = next(
        (row, step)
        for step in range(1, STEPS - 1)
        for row in range(2)  # not the last row, which would leave without a move
        if tokens[step, row] not in tokens[:step, row] and tokens[step, row] not in np.delete(tokens, row, axis=1)
    )
    batches: list[int] = []
    forward = model.decoder.forward

    def counted(embeds: Any, cache: Cache, positions: Any = None) -> Any:
        batches.append(len(embeds))
        return forward(embeds, cache, positions)

    logits, cache = branch(model.decoder, model.read(images), suffixes(model))
    monkeypatch.setattr(model.decoder, "forward", counted)
    states = greedy(model, logits, cache, STEPS, stop_id=int(tokens[stop[1], stop[0]]))
    for row, state in enumerate(states):
        expected = tokens[: stop[1], row] if row == stop[0] else tokens[:, row]
        assert state.tokens == expected.tolist()
    assert batches == [3] * stop[1] + [2] * (STEPS - 1 - stop[1])


def test_a_cache_is_a_value(model: StartedModel, images: Images) -> None:
    """Going on twice from one cache gives the same both times, and leaves what the first gave alone."""
    prefix = model.read(images)
    logits, start = branch(model.decoder, prefix, suffixes(model))
    first, longer = model.decoder.step([1, 2, 3], start)
    other, _ = model.decoder.step([4, 5, 6], start)
    found, _ = model.decoder.step([7, 8, 9], longer)
    again, longer = model.decoder.step([1, 2, 3], start)
    expected, _ = model.decoder.step([7, 8, 9], longer)
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.array_equal(found, expected), "the second run wrote over the first"
    repeated, _ = branch(model.decoder, prefix, suffixes(model))
    assert np.array_equal(repeated, logits), "the kept prefix was written over"


def test_several_columns_of_several_rows(model: StartedModel) -> None:
    """forward and read without any past; every row its own sequence."""
    sequences = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    decoder = model.decoder
    one_by_one = np.concatenate([decoder.read([ids], decoder.empty_cache())[0] for ids in sequences])
    together, cache = decoder.forward(decoder.embed(np.asarray(sequences)), decoder.empty_cache(3))
    assert np.abs(together - one_by_one).max() <= ATOL
    ragged, longer = decoder.read([[1], [2, 3, 4], [5, 6]], cache)
    expected = [
        decoder.read([ids + more], decoder.empty_cache())[0]
        for ids, more in zip(sequences, ([1], [2, 3, 4], [5, 6]), strict=True)
    ]
    assert np.abs(ragged - np.concatenate(expected)).max() <= ATOL
    assert longer.num_tokens.tolist() == [5, 7, 6]


@pytest.mark.parametrize(
    ("lengths", "calls"),
    [((1, 3, 1), 2), ((1, 1, 1), 1), ((2, 1, 5), 3), ((1, 4, 1, 9), 3), ((1, 1, 1, 20), 2), ((3,), 1), ((1,), 1), ((2, 2), 2)],
)
def test_rows_of_one_token_are_read_together(model: StartedModel, lengths: tuple[int, ...], calls: int) -> None:
    """As when a grammar forces tokens in some answers: one call for all rows, and one for what each longer row has left."""
    decoder, rng = model.decoder, np.random.default_rng(0)
    before = [rng.integers(5, 300, 3 + row).tolist() for row in range(len(lengths))]  # rows of different lengths
    more = [rng.integers(5, 300, length).tolist() for length in lengths]
    _, cache = decoder.read(before, decoder.empty_cache(len(lengths), room=40))
    counted = decoder.engine_calls
    found, longer = decoder.read(more, cache)
    assert decoder.engine_calls - counted == (calls if model.dialect == "gqa" else 1)
    assert longer.num_tokens.tolist() == [len(a) + len(b) for a, b in zip(before, more, strict=True)]
    assert longer.next_positions.tolist() == longer.num_tokens.tolist()
    after, _ = decoder.step([7] * len(lengths), longer)
    for row, (first, second) in enumerate(zip(before, more, strict=True)):
        expected, alone = decoder.read([first + second], decoder.empty_cache(1, room=40))
        assert np.abs(found[row] - expected[0]).max() <= ATOL
        assert np.abs(after[row] - decoder.step([7], alone)[0][0]).max() <= ATOL


def test_logits_that_were_kept_stay(model: StartedModel, images: Images) -> None:
    """Steps write into the same memory, but not while somebody holds it."""
    logits, cache = branch(model.decoder, model.read(images), suffixes(model))
    held, copies = [logits], [logits.copy()]
    for _ in range(5):
        logits, cache = model.decoder.step([1, 2, 3], cache)
        held.append(logits)
        copies.append(logits.copy())
    assert all(np.array_equal(a, b) for a, b in zip(held, copies, strict=True))
    assert not np.array_equal(copies[0], copies[1])


def test_memory_that_no_model_can_fill_is_refused(model: StartedModel) -> None:
    limit = model.manifest.model.max_positions
    for rows, capacity in ((0, 10), (3, 0), (3, limit + 1)):
        with pytest.raises(
            UsageError, match=rf"K/V memory for {rows} branches of {capacity} tokens; expected .* 1 to {limit} tokens"
        ):
            model.decoder.reserve(rows, capacity)
