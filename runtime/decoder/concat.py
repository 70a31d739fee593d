"""The dialect `concat`: every call gives present K/V, longer than past by the new columns. Rows of one call end together.

A column is a real token or left padding; keys were rotated before they were cached, so a row's next position does not depend on
where its padding lies.

B rows (one per branch), T new columns, P past columns, D hidden size, V vocabulary, K key/value heads, d head dim
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.bundle.graph_contract import past_names, present_names
from drivekd.runtime.bundle.manifest import GraphSpec, ModelInfo
from drivekd.runtime.engine.runner import Array, DeviceTensor, Feed, Runner

from .embedding import EmbeddingTable
from .protocol import Cache, Embeds, Logits, Positions, behind, cache_dtype, check_reservation, graph_positions, text_positions


@dataclass(frozen=True)
class KvCache:
    """A Cache of grown tensors.

    tensors: in the order of `past_names`, each [B, K, P, d]. mask: [B, P], 1 = token, 0 = padding. next_positions: [B].
    """

    tensors: tuple[Feed, ...]
    mask: NDArray[np.int64]
    next_positions: NDArray[np.int64]

    @property
    def batch(self) -> int:
        return int(self.mask.shape[0])

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        return np.asarray(self.mask.sum(axis=1), np.int64)

    def feeds(self) -> dict[str, Feed]:
        """The graph's inputs past_key_values.N.key and .value."""
        return dict(zip(past_names(len(self.tensors) // 2), self.tensors, strict=True))

    def select(self, rows: Sequence[int], *, room: int = 0) -> KvCache:
        return KvCache(tuple(_rows(tensor, rows) for tensor in self.tensors), self.mask[rows], self.next_positions[rows])

    def compact(self, rows: Sequence[int]) -> KvCache:
        return self.select(rows)

    def truncated(self, num_tokens: int, next_position: int, *, room: int = 0) -> KvCache:
        assert self.batch == 1 and self.mask.all(), "a prefix is one row without padding"
        assert num_tokens <= self.mask.shape[1], "a prefix is not made longer"
        if num_tokens == self.mask.shape[1]:
            return self
        tensors = tuple(np.ascontiguousarray(_host(tensor)[:, :, :num_tokens]) for tensor in self.tensors)
        return KvCache(tensors, self.mask[:, :num_tokens], np.asarray([next_position]))

    def kv(self, row: int) -> tuple[Array, ...]:
        real = self.mask[row] == 1
        return tuple(_host(tensor)[row][:, real] for tensor in self.tensors)


def empty_cache(model: ModelInfo, batch: int, dtype: np.dtype[Any]) -> KvCache:
    """A cache of nothing: P = 0."""
    nothing = np.zeros((batch, model.num_kv_heads, 0, model.head_dim), dtype)
    return KvCache((nothing,) * (2 * model.num_layers), np.zeros((batch, 0), np.int64), np.zeros(batch, np.int64))


def cache_from_outputs(
    outputs: Mapping[str, DeviceTensor], mask: NDArray[np.int64], next_positions: NDArray[np.int64]
) -> KvCache:
    """The cache after a decoder call; mask [B, P] covers old and new columns."""
    num_layers = (len(outputs) - 1) // 2  # all but the logits
    return KvCache(tuple(outputs[name] for name in present_names(num_layers)), mask, next_positions)


def _host(tensor: Feed) -> Array:
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def _rows(tensor: Feed, rows: Sequence[int]) -> Feed:
    """A copy of some rows, where the tensor lies."""
    return tensor[list(rows)] if isinstance(tensor, np.ndarray) else tensor.select(rows)


class ConcatDecoder:
    """A Decoder over a `concat` graph: shorter sequences of one read are padded on the left."""

    def __init__(self, runner: Runner, embedding: EmbeddingTable, model: ModelInfo, spec: GraphSpec) -> None:
        self._runner = runner
        self._embedding = embedding
        self._model = model
        self._dtype = cache_dtype(spec)
        self.engine_calls = 0

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._embedding.rows(ids)

    def reserve(self, rows: int, capacity: int) -> None:
        check_reservation(rows, capacity, self._model.max_positions)  # tensors grow by themselves

    def empty_cache(self, batch: int = 1, *, room: int = 0) -> KvCache:
        return empty_cache(self._model, batch, self._dtype)

    def prefix_cache(self, *, room: int = 0) -> KvCache:
        return self.empty_cache()

    def forward(self, embeds: Embeds, cache: Cache, positions: Positions | None = None) -> tuple[Logits, KvCache]:
        return self._forward(embeds, cache, np.ones(embeds.shape[:2], np.int64), positions)

    def read(
        self,
        sequences: Sequence[Sequence[int]],
        cache: Cache,
        deadline: Deadline | None = None,
    ) -> tuple[Logits, KvCache]:
        """One engine call, before which the caller has asked the deadline."""
        ids, mask = left_padded(sequences)
        return self._forward(self.embed(ids), cache, mask, None)

    def step(self, tokens: Sequence[int], cache: Cache) -> tuple[Logits, KvCache]:
        return self.forward(self.embed(np.asarray(tokens, np.int64)[:, None]), cache)

    def _forward(
        self, embeds: Embeds, cache: Cache, mask: NDArray[np.int64], positions: Positions | None
    ) -> tuple[Logits, KvCache]:
        """mask [B, T]: 0 = left padding."""
        assert isinstance(cache, KvCache)
        if positions is None:
            positions = text_positions(cache.next_positions, mask)
        total = np.concatenate([cache.mask, mask], axis=1)  # [B, P + T]
        position_ids = graph_positions(positions, self._model.rotary_axes)
        feeds = {"inputs_embeds": embeds, "attention_mask": total, "position_ids": position_ids, **cache.feeds()}
        self.engine_calls += 1
        outputs = self._runner.infer(feeds)
        return outputs["logits"].numpy(), cache_from_outputs(outputs, total, behind(cache, positions))


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, both [B, longest]; padding has id 0 and mask 0."""
    assert all(sequences), "every row reads at least one token"
    longest = max(map(len, sequences))
    ids = np.zeros((len(sequences), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = sequence
        mask[row, longest - len(sequence) :] = 1
    return ids, mask
