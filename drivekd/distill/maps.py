"""The maps that a signal compares, taken from one forward pass of either model.

B packs, S tokens, R rows, C columns, D width; lower case b, s: of a view, which holds some of the batch's samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from drivekd.data.batch import PREFIX, Batch, View
from drivekd.distill.signals import Places, Signal, text_to_vision_places
from drivekd.models.probe import Captured, MapRequest


@dataclass(frozen=True)
class WantedLayers:
    """What several signals want of one model: whole maps, text rows of maps where that is enough, hidden states."""

    whole: frozenset[int]
    rows: frozenset[int]
    hidden: frozenset[int]

    @classmethod
    def of(cls, signals: Iterable[tuple[Signal, Sequence[int]]]) -> WantedLayers:
        """signals: each with the layers that it wants of this model."""
        whole, rows, hidden = set[int](), set[int](), set[int]()
        for signal, layers in signals:
            chosen = hidden if signal.loss == "hidden" else whole if signal.form == "full_map" else rows
            chosen.update(layers)
        return cls(frozenset(whole), frozenset(rows - whole), frozenset(hidden))

    def requests(self, places: Places) -> dict[int, MapRequest]:
        """places: the batch's text rows and vision columns."""
        some = MapRequest(places.rows, places.columns)
        return {layer: some if layer in self.rows else MapRequest() for layer in sorted(self.whole | self.rows)}


class Maps:
    """Everything captured of one model on one batch."""

    def __init__(self, batch: Batch, wanted: WantedLayers) -> None:
        self._batch = batch
        self._wanted = wanted
        self._places = text_to_vision_places(batch)
        self.captured = Captured()

    @cached_property
    def requests(self) -> dict[int, MapRequest]:
        """What to capture of each layer, 0-based, while the model reads the batch."""
        return self._wanted.requests(self._places)

    def at(self, signal: Signal, layer: int, view: View, places: Places) -> Tensor:
        """One layer's map at `places` of the view, [b, R, C]."""
        if signal.loss == "hidden":
            hidden = self.captured.hidden[layer][view.rows].gather(
                1, view.positions[:, :, None].expand(-1, -1, self.captured.hidden[layer].shape[2])
            )
            return similarity_map(hidden, view.batch, places)
        found = self.captured.attention[layer]
        if layer in self._wanted.rows:
            return found if view.is_whole else self._rows_of(found, view, places)
        if view.is_whole and signal.form == "full_map":
            return found
        rows, columns = (view.positions.gather(1, positions) for positions in (places.rows, places.columns))
        return _gather(found[view.rows], rows, columns)

    def _rows_of(self, found: Tensor, view: View, places: Places) -> Tensor:
        """found: the map at all text rows of the batch; text rows lie in order, so a row's place is the count of those before."""
        text = self._batch.token_mask & ~self._batch.vision_mask
        order = (text.cumsum(1) - 1).clamp(min=0)[view.rows]  # [b, S]
        rows = order.gather(1, view.positions.gather(1, places.rows))
        columns = torch.arange(places.columns.shape[1], device=rows.device).expand(len(rows), -1)
        return _gather(found[view.rows], rows, columns)


def _gather(whole: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """whole [b, S, T] at rows [b, R] and columns [b, C] -> [b, R, C]."""
    chosen = whole.gather(1, rows[:, :, None].expand(-1, -1, whole.shape[2]))
    return chosen.gather(2, columns[:, None].expand(-1, rows.shape[1], -1))


def similarity_map(hidden: Tensor, batch: Batch, places: Places) -> Tensor:
    """Cosine between the hidden states of row and column tokens, 0 where a row does not see a column. hidden [B, S, D].

    Comparing similarities needs no projection between widths (Tung and Mori, ICCV 2019).
    """
    unit = F.normalize(hidden.float(), dim=-1)

    def at(positions: Tensor) -> Tensor:
        return unit.gather(1, positions[:, :, None].expand(-1, -1, unit.shape[2]))

    rows, columns = batch.segment.gather(1, places.rows)[:, :, None], batch.segment.gather(1, places.columns)[:, None]
    visible = ((rows == columns) | (columns == PREFIX)) & (places.columns[:, None] <= places.rows[:, :, None])
    return (at(places.rows) @ at(places.columns).transpose(1, 2)) * visible
