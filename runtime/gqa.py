"""The dialect `gqa`: onnxruntime's GroupQueryAttention reads and writes K/V in place, so a decode step copies none of it.

The operator takes rows of different lengths only when each reads one column; several columns are read row by row, each in its own
row of the arena.

B rows, T new columns, D hidden size, V vocabulary, A rotary axes
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .arena import Arena, ArenaCache, new_arena
from .deadline import Deadline
from .decoder import Cache, DeadlineExpiredError, Embeds, Logits, Positions, behind, cache_dtype, text_positions
from .embedding import EmbeddingTable
from .kv_cache import past_names, present_names
from .manifest import GraphSpec, ModelInfo
from .ort import OrtRunner
from .runner import Array


class GqaDecoder:
    """A Decoder over a `gqa` graph."""

    def __init__(self, runner: OrtRunner, embedding: EmbeddingTable, model: ModelInfo, spec: GraphSpec) -> None:
        self._runner = runner
        self._embedding = embedding
        self._model = model
        self._dtype = cache_dtype(spec)
        self._steps: WeakKeyDictionary[Arena, _ArenaCall] = WeakKeyDictionary()  # bound once an arena, freed with it

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._embedding.rows(ids)

    def empty_cache(self, batch: int = 1, *, room: int = 0) -> ArenaCache:
        model = self._model
        arena = new_arena(2 * model.num_layers, (batch, model.num_kv_heads, room, model.head_dim), self._dtype)
        return ArenaCache(arena, np.zeros(batch, np.int64), np.zeros(batch, np.int64))

    def forward(self, embeds: Embeds, cache: Cache, positions: Positions | None = None) -> tuple[Logits, ArenaCache]:
        assert isinstance(cache, ArenaCache)
        batch, length, _ = embeds.shape
        if positions is None:
            positions = text_positions(cache.next_positions, np.ones((batch, length), np.int64))
        cache = cache.writable(length)
        if batch == 1 or length == 1:
            return self._call(embeds, cache, positions)
        parts = [self._call(embeds[row : row + 1], _row(cache, row), positions[:, row : row + 1]) for row in range(batch)]
        return _joined(cache.arena, parts)

    def read(
        self, sequences: Sequence[Sequence[int]], cache: Cache, deadline: Deadline | None = None
    ) -> tuple[Logits, ArenaCache]:
        assert isinstance(cache, ArenaCache) and all(sequences), "every row reads at least one token"
        cache = cache.writable(max(map(len, sequences)))
        parts = []
        for row, sequence in enumerate(sequences):
            if row and deadline is not None and deadline.expired():
                raise DeadlineExpiredError
            parts.append(self.forward(self.embed(np.asarray([sequence], np.int64)), _row(cache, row)))
        return _joined(cache.arena, parts)

    def step(self, tokens: Sequence[int], cache: Cache) -> tuple[Logits, ArenaCache]:
        return self.forward(self.embed(np.asarray(tokens, np.int64)[:, None]), cache)

    def _call(self, embeds: Embeds, cache: ArenaCache, positions: Positions) -> tuple[Logits, ArenaCache]:
        length = embeds.shape[1]
        logits = self._bound(cache.arena, length)(embeds, cache.num_tokens + length, positions)
        return logits, cache.advanced(length, behind(cache, positions))

    def _bound(self, arena: Arena, length: int) -> _ArenaCall:
        if length > 1:  # a question's length does not come again
            return _ArenaCall(self._runner, self._model, arena, length)
        if (found := self._steps.get(arena)) is None:
            found = self._steps[arena] = _ArenaCall(self._runner, self._model, arena, length)
        return found


class _ArenaCall:
    """The graph bound to an arena and to input memory of one shape: a call writes a few numbers and runs."""

    def __init__(self, runner: OrtRunner, model: ModelInfo, arena: Arena, length: int) -> None:
        batch = arena.batch
        self._axes, self._vocab_size = model.rotary_axes, model.vocab_size
        self._embeds = np.empty((batch, length, model.hidden_size), np.float32)
        self._seqlens = np.empty(batch, np.int32)  # of each row after the call, minus 1: the operator's convention
        self._total = np.empty(1, np.int32)
        self._positions = np.empty((model.rotary_axes, batch, length), np.int64)
        inputs: dict[str, Array] = {
            "inputs_embeds": self._embeds,
            "seqlens_k": self._seqlens,
            "total_sequence_length": self._total,
            **dict(zip(past_names(model.num_layers), arena.tensors, strict=True)),
        }
        if model.rotary_axes > 1:  # with one axis the operator counts by itself
            inputs["position_ids"] = self._positions
        self._graph = runner.bind(inputs, dict(zip(present_names(model.num_layers), arena.tensors, strict=True)))

    def __call__(self, embeds: Embeds, num_tokens: NDArray[np.int64], positions: Positions) -> Logits:
        """num_tokens: of each row after the call, [B]. Returns logits [B, V] in memory of their own."""
        self._embeds[:] = embeds
        self._seqlens[:] = num_tokens - 1
        self._total[0] = num_tokens.max()
        if self._axes > 1:
            self._positions[:] = positions
        logits = np.empty((len(num_tokens), self._vocab_size), np.float32)
        self._graph.bind_output("logits", logits)
        self._graph.run()
        return logits


def _row(cache: ArenaCache, row: int) -> ArenaCache:
    """One row, in the same memory."""
    place = slice(row, row + 1)
    return ArenaCache(cache.arena.rows(row, row + 1), cache.num_tokens[place], cache.next_positions[place])


def _joined(arena: Arena, parts: Sequence[tuple[Logits, ArenaCache]]) -> tuple[Logits, ArenaCache]:
    """Rows that were read one by one."""
    logits = np.concatenate([logits for logits, _ in parts])
    num_tokens = np.concatenate([cache.num_tokens for _, cache in parts])
    return logits, ArenaCache(arena, num_tokens, np.concatenate([cache.next_positions for _, cache in parts]))
