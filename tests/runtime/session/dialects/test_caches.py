"""However K/V is read and kept: in chunks, grown, copied, without the rows that ended; in both families and dialects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dialect_cases import ATOL, STEPS, Images, free_run, greedy, read, suffixes

import drivekd.runtime.session.prefix as prefix_module
from drivekd.errors import UsageError
from drivekd.runtime.decoder.arena import ArenaCache
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.session.session import Session
from drivekd.runtime.session.triad import branch

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_a_prefix_read_in_chunks_is_the_same(session: Session, images: Images, chunk: int, monkeypatch: Any) -> None:
    tokens = free_run(session, images)
    whole = session.forced_logits(images, list(session.questions().values()), tokens)
    session.prefix.forget()
    monkeypatch.setattr(prefix_module, "CHUNK", chunk)
    parts = session.forced_logits(images, list(session.questions().values()), tokens)
    assert np.abs(parts - whole).max() <= ATOL


def test_no_room_only_costs_copies(session: Session, images: Images) -> None:
    """An arena that is full at the first step grows on the way; tensors that grow anyway do not care."""
    prefix = read(session, images)
    questions = suffixes(session)
    runs = []
    for room in (-max(map(len, questions)), 0, 1, STEPS, 200):
        logits, cache = branch(session.decoder, prefix, questions, room=room)
        capacity = cache.arena.capacity if isinstance(cache, ArenaCache) else 0
        steps = [logits]
        for _ in range(STEPS):
            logits, cache = session.decoder.step([1, 2, 3], cache)
            steps.append(logits)
        runs.append(np.stack(steps))
        if isinstance(cache, ArenaCache) and room == 200:
            assert cache.arena.capacity == capacity, "it grew without need"
    for run in runs[1:]:
        assert np.abs(run - runs[0]).max() <= ATOL


@pytest.mark.parametrize("going", [[0], [1], [2], [0, 1], [0, 2], [1, 2]])
def test_rows_that_go_on_do_not_notice(session: Session, images: Images, going: list[int]) -> None:
    prefix, questions = read(session, images), suffixes(session)
    assert len({len(question) for question in questions}) > 1, "rows of different lengths"
    _, cache = branch(session.decoder, prefix, questions)
    _, cache = session.decoder.step([5, 6, 7], cache)
    lengths = cache.num_tokens[going].tolist()
    rows = [cache.kv(row) for row in going]
    compacted = cache.compact(going)
    assert compacted.num_tokens.tolist() == lengths
    for row, expected in enumerate(rows):
        for found, tensor in zip(compacted.kv(row), expected, strict=True):
            assert np.array_equal(found, tensor)
    found, _ = session.decoder.step([8] * len(going), compacted)
    _, again = branch(session.decoder, prefix, questions)
    _, again = session.decoder.step([5, 6, 7], again)
    expected_logits, _ = session.decoder.step([8, 8, 8], again)
    assert np.abs(found - expected_logits[going]).max() <= ATOL


def test_a_branch_that_ended_leaves_the_batch(session: Session, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode with a token of one answer as the end: the batch shrinks, the others go on as they would."""
    tokens = free_run(session, images)
    stop = next(
        (row, step)
        for step in range(1, STEPS - 1)
        for row in range(2)  # not the last row, which would leave without a move
        if tokens[step, row] not in tokens[:step, row] and tokens[step, row] not in np.delete(tokens, row, axis=1)
    )
    batches: list[int] = []
    forward = session.decoder.forward

    def counted(embeds: Any, cache: Cache, positions: Any = None) -> Any:
        batches.append(len(embeds))
        return forward(embeds, cache, positions)

    logits, cache = branch(session.decoder, read(session, images), suffixes(session))
    monkeypatch.setattr(session.decoder, "forward", counted)
    states = greedy(session, logits, cache, STEPS, stop_id=int(tokens[stop[1], stop[0]]))
    for row, state in enumerate(states):
        expected = tokens[: stop[1], row] if row == stop[0] else tokens[:, row]
        assert state.tokens == expected.tolist()
    assert batches == [3] * stop[1] + [2] * (STEPS - 1 - stop[1])


def test_a_cache_is_a_value(session: Session, images: Images) -> None:
    """Going on twice from one cache gives the same both times, and leaves what the first gave alone."""
    prefix = read(session, images)
    logits, start = branch(session.decoder, prefix, suffixes(session))
    first, longer = session.decoder.step([1, 2, 3], start)
    other, _ = session.decoder.step([4, 5, 6], start)
    found, _ = session.decoder.step([7, 8, 9], longer)
    again, longer = session.decoder.step([1, 2, 3], start)
    expected, _ = session.decoder.step([7, 8, 9], longer)
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.array_equal(found, expected), "the second run wrote over the first"
    repeated, _ = branch(session.decoder, prefix, suffixes(session))
    assert np.array_equal(repeated, logits), "the kept prefix was written over"


def test_several_columns_of_several_rows(session: Session) -> None:
    """forward and read without any past; every row its own sequence."""
    sequences = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    decoder = session.decoder
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
def test_rows_of_one_token_are_read_together(session: Session, lengths: tuple[int, ...], calls: int) -> None:
    """As when a grammar forces tokens in some answers: one call for all rows, and one for what each longer row has left."""
    decoder, rng = session.decoder, np.random.default_rng(0)
    before = [rng.integers(5, 300, 3 + row).tolist() for row in range(len(lengths))]  # rows of different lengths
    more = [rng.integers(5, 300, length).tolist() for length in lengths]
    _, cache = decoder.read(before, decoder.empty_cache(len(lengths), room=40))
    counted = decoder.engine_calls
    found, longer = decoder.read(more, cache)
    assert decoder.engine_calls - counted == (calls if session.dialect == "gqa" else 1)
    assert longer.num_tokens.tolist() == [len(a) + len(b) for a, b in zip(before, more, strict=True)]
    assert longer.next_positions.tolist() == longer.num_tokens.tolist()
    after, _ = decoder.step([7] * len(lengths), longer)
    for row, (first, second) in enumerate(zip(before, more, strict=True)):
        expected, alone = decoder.read([first + second], decoder.empty_cache(1, room=40))
        assert np.abs(found[row] - expected[0]).max() <= ATOL
        assert np.abs(after[row] - decoder.step([7], alone)[0][0]).max() <= ATOL


def test_logits_that_were_kept_stay(session: Session, images: Images) -> None:
    """Steps write into the same memory, but not while somebody holds it."""
    logits, cache = branch(session.decoder, read(session, images), suffixes(session))
    held, copies = [logits], [logits.copy()]
    for _ in range(5):
        logits, cache = session.decoder.step([1, 2, 3], cache)
        held.append(logits)
        copies.append(logits.copy())
    assert all(np.array_equal(a, b) for a, b in zip(held, copies, strict=True))
    assert not np.array_equal(copies[0], copies[1])


def test_memory_that_no_model_can_fill_is_refused(session: Session) -> None:
    limit = session.manifest.model.max_positions
    for rows, capacity in ((0, 10), (3, 0), (3, limit + 1)):
        with pytest.raises(
            UsageError, match=rf"K/V memory for {rows} branches of {capacity} tokens; expected .* 1 to {limit} tokens"
        ):
            session.decoder.reserve(rows, capacity)
