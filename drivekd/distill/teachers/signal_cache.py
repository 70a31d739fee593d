"""The teacher cache: a signal's target maps, kept on disk by question.

Block-causal attention makes every row depend on the frame's prefix and its own question alone, so a pack's target is a stack of
blocks: the prefix's text rows, stored once a frame, and each question's rows. Blocks are [k, r, V] for k student layers, r rows
and the frame's V vision tokens. A pack's rows lie in that order, prefix first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from drivekd.data.batch import PREFIX, View
from drivekd.distill.signals import text_to_vision_places
from drivekd.files import file_digest, json_digest


class Store(Protocol):
    """`drivekd.distill.teachers.store.BlockStore` is one.

    get(key): a block, None = it is missing. put(key, block): keep a copy.
    """

    def get(self, key: str) -> Tensor | None: ...
    def put(self, key: str, block: Tensor) -> None: ...


class SignalCache:
    """Targets of one text-to-vision signal."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, view: View) -> list[Tensor] | None:
        """One target [b, R, V] for each student layer, or None when a block is missing."""
        packs = []
        for keys in self._keys(view):
            blocks = [self._store.get(key) for key in keys]
            found = [block for block in blocks if block is not None]
            if len(found) < len(blocks):
                return None
            packs.append(torch.cat(found, 1))  # [k, R, V]
        rows, columns = (max(pack.shape[axis] for pack in packs) for axis in (1, 2))
        padded = [F.pad(pack, (0, columns - pack.shape[2], 0, rows - pack.shape[1])) for pack in packs]
        return list(torch.stack(padded, 1))

    def put(self, view: View, targets: Sequence[Tensor]) -> None:
        """Keep the blocks of targets [b, R, V]; those that are there already stay."""
        stacked = torch.stack([target.cpu() for target in targets])  # [k, b, R, V]
        places = text_to_vision_places(view.batch.to(torch.device("cpu")))
        segments = view.batch.segment.cpu().gather(1, places.rows)
        for pack, keys in enumerate(self._keys(view)):
            columns = int(places.column_mask[pack].sum())
            for segment, key in enumerate(keys):
                rows = (segments[pack] == segment) & places.row_mask[pack]
                self._store.put(key, stacked[:, pack, rows, :columns].contiguous())

    def _keys(self, view: View) -> list[list[str]]:
        """For each pack the key of its prefix and of its questions, in order."""
        keys = []
        for pack, images in enumerate(view.batch.images):
            frame = [file_digest(path) for path in images]
            ids, segment = view.batch.input_ids[pack], view.batch.segment[pack]
            parts = [ids[segment == number].tolist() for number in range(int(segment.max()) + 1)]
            keys.append([json_digest([frame, parts[PREFIX]])] + [json_digest([frame, parts[0], part]) for part in parts[1:]])
        return keys
