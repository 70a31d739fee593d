"""The language model's graph with its embedding: token ids or embeddings in, logits of the last column out.

B rows, T new columns, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .kv_cache import KvCache, cache_from_outputs, empty_cache
from .manifest import ModelInfo
from .runner import Runner

Logits = NDArray[np.float32]  # [B, V]


class Decoder:
    """embedding: [V, D]. Sequences of one call end together: shorter ones are padded on the left."""

    def __init__(self, runner: Runner, embedding: NDArray[np.float32], model: ModelInfo) -> None:
        self._runner = runner
        self._embedding = embedding
        self._model = model

    def empty_cache(self, batch: int = 1) -> KvCache:
        return empty_cache(self._model, batch)

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Ids of any shape [...] -> embeddings [..., D]."""
        return self._embedding[ids]

    def forward(
        self, embeds: NDArray[np.float32], cache: KvCache, mask: NDArray[np.int64] | None = None
    ) -> tuple[Logits, KvCache]:
        """Read embeds [B, T, D] after `cache`. mask [B, T]: 0 = left padding. Returns logits [B, V] and the longer cache.

        Raises RunnerError when the engine fails.
        """
        batch, length, _ = embeds.shape
        if mask is None:
            mask = np.ones((batch, length), np.int64)
        positions = cache.num_tokens[:, None] + np.maximum(mask.cumsum(axis=1) - 1, 0)  # [B, T]
        total = np.concatenate([cache.mask, mask], axis=1)  # [B, P + T]
        feeds = {"inputs_embeds": embeds, "attention_mask": total, "position_ids": positions, **cache.feeds()}
        outputs = self._runner.infer(feeds)
        return outputs["logits"].numpy(), cache_from_outputs(outputs, total)

    def read(self, sequences: Sequence[Sequence[int]], cache: KvCache) -> tuple[Logits, KvCache]:
        """Read one id sequence per row, of any lengths > 0."""
        ids, mask = left_padded(sequences)
        return self.forward(self.embed(ids), cache, mask)

    def step(self, tokens: Sequence[int], cache: KvCache) -> tuple[Logits, KvCache]:
        """Read one token per row."""
        return self.forward(self.embed(np.asarray(tokens, np.int64)[:, None]), cache)


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
