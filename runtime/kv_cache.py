"""Names of a decoder's K/V, and the cache of the dialect `concat`.

B rows (one per branch), K key/value heads, P cached columns, head dim d. A column is a real token or left padding; keys were
rotated before they were cached, so a row's next position does not depend on where its padding lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle.manifest import ModelInfo
from .engine.runner import Array, DeviceTensor, Feed

PARTS = ("key", "value")


def past_names(num_layers: int) -> list[str]:
    """Input names of the decoder's K/V, in graph order."""
    return [f"past_key_values.{layer}.{part}" for layer in range(num_layers) for part in PARTS]


def present_names(num_layers: int) -> list[str]:
    """Output names of the decoder's K/V, in the order of `past_names`."""
    return [f"present.{layer}.{part}" for layer in range(num_layers) for part in PARTS]


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
