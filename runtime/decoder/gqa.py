"""The dialect `gqa`: onnxruntime's GroupQueryAttention reads and writes K/V in place, so a decode step copies none of it.

The operator takes rows of different lengths only when each reads one column; several columns are read row by row, each in its own
row of the arena.

B rows, T new columns, D hidden size, V vocabulary, A rotary axes
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from drivekd.runtime.answers.deadline import Deadline, DeadlineExpiredError
from drivekd.runtime.bundle.graph_contract import past_names, present_names
from drivekd.runtime.bundle.manifest import GraphSpec, ModelInfo
from drivekd.runtime.decoder.reserve import LogitsMemory
from drivekd.runtime.engine.ort import OrtRunner
from drivekd.runtime.engine.runner import Array

from .arena import Arena, ArenaCache, new_arena
from .embedding import EmbeddingTable
from .protocol import Cache, Embeds, Logits, Positions, behind, cache_dtype, check_reservation, text_positions
from .reserve import Reserve

KEPT_LENGTH = 8  # calls of so few columns stay bound (binding takes .4 ms): steps, and runs of tokens that a grammar forces
COLUMNS = 128  # capacity comes in such steps, so that a question that is one token longer needs no new memory


class GqaDecoder:
    """A Decoder over a `gqa` graph."""

    def __init__(self, runner: OrtRunner, embedding: EmbeddingTable, model: ModelInfo, spec: GraphSpec) -> None:
        self._runner = runner
        self._embedding = embedding
        self._model = model
        self._new_arena = partial(_new_arena, model, cache_dtype(spec))
        self._reserve = Reserve(self._new_arena)
        self._logits = LogitsMemory(model.vocab_size)
        self.engine_calls = 0
        self._calls: WeakKeyDictionary[Arena, dict[int, _ArenaCall]] = WeakKeyDictionary()  # by length; freed with the arena

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._embedding.rows(ids)

    def reserve(self, rows: int, capacity: int) -> None:
        check_reservation(rows, capacity, self._model.max_positions)
        self._reserve.hold(rows, min(-(-capacity // COLUMNS) * COLUMNS, self._model.max_positions))

    def empty_cache(self, batch: int = 1, *, room: int = 0) -> ArenaCache:
        return ArenaCache(self._new_arena(batch, room), np.zeros(batch, np.int64), np.zeros(batch, np.int64))

    def prefix_cache(self, *, room: int = 0) -> ArenaCache:
        return self._reserve.empty_prefix(room)

    def forward(self, embeds: Embeds, cache: Cache, positions: Positions | None = None) -> tuple[Logits, ArenaCache]:
        assert isinstance(cache, ArenaCache)
        batch, length, _ = embeds.shape
        if positions is None:
            positions = text_positions(cache.next_positions, np.ones((batch, length), np.int64))
        cache = cache.writable(length)
        logits, memory = self._logits.lend(batch)
        if batch == 1 or length == 1:
            return logits, self._call(embeds, cache, positions, memory)
        places = [slice(row, row + 1) for row in range(batch)]
        rows = [self._call(embeds[place], cache.row(row), positions[:, place], memory[place]) for row, place in enumerate(places)]
        return logits, cache.joined(rows)

    def read(
        self,
        sequences: Sequence[Sequence[int]],
        cache: Cache,
        deadline: Deadline | None = None,
    ) -> tuple[Logits, ArenaCache]:
        """Where several rows read one token only, all rows read their first token in one call, the longer ones the rest alone."""
        assert isinstance(cache, ArenaCache) and all(sequences), "every row reads at least one token"
        cache = cache.writable(max(map(len, sequences)))
        logits, memory = self._logits.lend(len(sequences))
        together = int([len(sequence) for sequence in sequences].count(1) > 1)  # columns that all rows read in one call
        if together:
            cache = self._text([sequence[:1] for sequence in sequences], cache, memory)
        rows = [cache.row(row) for row in range(len(sequences))]
        for row, sequence in enumerate(sequences):
            if len(sequence) == together:
                continue
            if (row or together) and deadline is not None and deadline.interruption():
                raise DeadlineExpiredError
            rows[row] = self._text([sequence[together:]], rows[row], memory[row : row + 1])
        return logits, cache.joined(rows)

    def step(self, tokens: Sequence[int], cache: Cache) -> tuple[Logits, ArenaCache]:
        return self.forward(self.embed(np.asarray(tokens, np.int64)[:, None]), cache)

    def _text(self, ids: Sequence[Sequence[int]], cache: ArenaCache, logits: Logits) -> ArenaCache:
        """Ids [B, T] behind the cache in one call."""
        embeds = self.embed(np.asarray(ids, np.int64))
        return self._call(embeds, cache, text_positions(cache.next_positions, np.ones(embeds.shape[:2], np.int64)), logits)

    def _call(self, embeds: Embeds, cache: ArenaCache, positions: Positions, logits: Logits) -> ArenaCache:
        """One engine call; logits [B, V] are written."""
        self.engine_calls += 1
        length = embeds.shape[1]
        self._bound(cache.arena, embeds, positions)(cache.num_tokens + length, logits)
        return cache.advanced(length, behind(cache, positions))

    def _bound(self, arena: Arena, embeds: Embeds, positions: Positions) -> _ArenaCall:
        """A call that reads embeds and positions."""
        batch, length, _ = embeds.shape
        axes = self._model.rotary_axes
        if length > KEPT_LENGTH:  # such a length does not come again soon, and its input is worth no copy
            whole = np.ascontiguousarray(np.broadcast_to(positions, (axes, batch, length)))
            return _ArenaCall(self._runner, self._model, arena, np.ascontiguousarray(embeds), whole)
        calls = self._calls.setdefault(arena, {})
        if length not in calls:
            memory = np.empty((axes, batch, length), np.int64)
            calls[length] = _ArenaCall(self._runner, self._model, arena, np.empty(embeds.shape, np.float32), memory)
        calls[length].embeds[:] = embeds
        calls[length].positions[:] = positions
        return calls[length]


class _ArenaCall:
    """The graph bound to an arena and to input memory of one shape: a call writes a few numbers and runs."""

    def __init__(self, runner: OrtRunner, model: ModelInfo, arena: Arena, embeds: Embeds, positions: Positions) -> None:
        """embeds [B, T, D], positions [A, B, T]: memory that a run reads."""
        self.embeds, self.positions = embeds, positions
        self._seqlens = np.empty(arena.batch, np.int32)  # of each row after the call, minus 1: the operator's convention
        self._total = np.empty(1, np.int32)
        inputs: dict[str, Array] = {
            "inputs_embeds": embeds,
            "seqlens_k": self._seqlens,
            "total_sequence_length": self._total,
            **dict(zip(past_names(model.num_layers), arena.tensors, strict=True)),
        }
        if model.rotary_axes > 1:  # with one axis the operator counts by itself
            inputs["position_ids"] = positions
        self._graph = runner.bind(inputs, dict(zip(present_names(model.num_layers), arena.tensors, strict=True)))

    def __call__(self, num_tokens: NDArray[np.int64], logits: Logits) -> None:
        """num_tokens: of each row after the call, [B]. logits [B, V] are written."""
        self._seqlens[:] = num_tokens - 1
        self._total[0] = num_tokens.max()
        self._graph.bind_output("logits", logits)
        self._graph.run()


def _new_arena(model: ModelInfo, dtype: np.dtype[Any], rows: int, capacity: int, reserved: bool = False) -> Arena:
    return new_arena(2 * model.num_layers, (rows, model.num_kv_heads, capacity, model.head_dim), dtype, reserved=reserved)
