"""The dialect `concat`: every call gives present K/V, longer than past by the new columns. Rows of one call end together.

B rows, T new columns, P past columns, D hidden size, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.bundle.manifest import GraphSpec, ModelInfo
from drivekd.runtime.engine.runner import Runner
from drivekd.runtime.kv_cache import KvCache, cache_from_outputs, empty_cache

from .embedding import EmbeddingTable
from .protocol import Cache, Embeds, Logits, Positions, behind, cache_dtype, check_reservation, graph_positions, text_positions


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
        cancelled: Callable[[], bool] | None = None,
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
