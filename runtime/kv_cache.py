"""Keys and values of what the decoder has read.

B rows (one per branch), KV heads, P cached columns, head dim d. A column is a real token or left padding; RoPE was applied
before caching, so a row's next position is its number of real tokens, wherever its padding lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .manifest import ModelInfo
from .runner import DeviceTensor, Feed

PARTS = ("key", "value")


def past_names(num_layers: int) -> list[str]:
    """Input names of the decoder's K/V, in graph order."""
    return [f"past_key_values.{layer}.{part}" for layer in range(num_layers) for part in PARTS]


def present_names(num_layers: int) -> list[str]:
    """Output names of the decoder's K/V, in the order of `past_names`."""
    return [f"present.{layer}.{part}" for layer in range(num_layers) for part in PARTS]


@dataclass(frozen=True)
class KvCache:
    """tensors: in the order of `past_names`, each [B, KV, P, d]. mask: [B, P], 1 = real token, 0 = padding."""

    tensors: tuple[Feed, ...]
    mask: NDArray[np.int64]

    @property
    def batch(self) -> int:
        return int(self.mask.shape[0])

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Real tokens per row, [B]: the position of each row's next token."""
        return np.asarray(self.mask.sum(axis=1), np.int64)

    def feeds(self) -> dict[str, Feed]:
        return dict(zip(past_names(len(self.tensors) // 2), self.tensors, strict=True))

    def select(self, rows: Sequence[int]) -> KvCache:
        """A copy with these rows, in this order; a row may appear several times (a shared prefix that branches)."""
        return KvCache(tuple(_host(tensor)[rows] for tensor in self.tensors), self.mask[rows])


def empty_cache(model: ModelInfo, batch: int = 1) -> KvCache:
    """A cache of nothing: P = 0."""
    nothing = np.zeros((batch, model.num_kv_heads, 0, model.head_dim), np.float32)
    return KvCache((nothing,) * (2 * model.num_layers), np.zeros((batch, 0), np.int64))


def cache_from_outputs(outputs: Mapping[str, DeviceTensor], mask: NDArray[np.int64]) -> KvCache:
    """The cache after a decoder call; mask [B, P] covers old and new columns."""
    num_layers = (len(outputs) - 1) // 2  # all but the logits
    return KvCache(tuple(outputs[name] for name in present_names(num_layers)), mask)


def _host(tensor: Feed) -> NDArray[np.float32]:
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
