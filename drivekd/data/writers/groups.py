"""Which questions belong together: a split must not tear them apart, or the test asks about what training showed.

A question belongs to its scene; without a scene to its frame and its pictures: whoever shares one of them is one group.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from drivekd.data.traces import text_hash
from drivekd.sample import CAPABILITIES, Sample

_FEW = 64  # groups: above it chance is even enough, and pairs are many


@dataclass(frozen=True)
class Groups:
    """names [G] uint64: of each group, in rising order; counts [G, 3]: its questions by capability; of_sample [N]: each sample's
    group, an index into names. by: what told the groups, with how many samples: scene, frame, pictures, or nothing."""

    names: NDArray[np.uint64]
    counts: NDArray[np.int64]
    of_sample: NDArray[np.int64]
    by: dict[str, int]


class GroupCollector:
    """Gathers Groups of samples that come one by one; keeps 8 bytes a sample and a name a scene, frame or picture."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}
        self._keys: list[int] = []
        self._capabilities: list[int] = []
        self._by: Counter[str] = Counter()

    def add(self, sample: Sample) -> None:
        """Add one sample."""
        by, keys = _keys(sample)
        self._by[by] += 1
        for other in keys[1:]:
            self._join(keys[0], other)
        self._keys.append(keys[0])
        self._capabilities.append(CAPABILITIES.index(sample.capability))

    def groups(self) -> Groups:
        """Of all that was added."""
        roots = np.array([self._root(key) for key in self._keys], np.uint64)
        names, of_sample = np.unique(roots, return_inverse=True)
        counts = np.zeros((len(names), len(CAPABILITIES)), np.int64)
        np.add.at(counts, (of_sample, np.array(self._capabilities, np.int64)), 1)
        return Groups(names, counts, of_sample.astype(np.int64), dict(self._by))

    def _root(self, key: int) -> int:
        root = key
        while (above := self._parent.get(root, root)) != root:
            root = above
        while (above := self._parent.get(key, key)) != root and above != key:
            self._parent[key], key = root, above
        return root

    def _join(self, a: int, b: int) -> None:
        low, high = sorted((self._root(a), self._root(b)))
        if low != high:
            self._parent[high] = low  # the smallest hash names a group, whatever the file's order


def _keys(sample: Sample) -> tuple[str, list[int]]:
    """What tells a sample's group, and the hashes that it has in common with the others of it."""
    if sample.scene:
        return "scene", [text_hash(f"scene {sample.scene}")]
    keys = [text_hash(f"frame {sample.frame}")] if sample.frame else []
    keys += [text_hash(f"picture {picture}") for picture in sample.images]
    return ("frame" if sample.frame else "pictures"), keys or [text_hash(f"question {sample.question}")]


def assign(groups: Groups, shares: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """The part of each group [G], parts numbered as in shares [P], which sum to 1; a pure function of groups, shares and seed.

    Groups in random order go to the part that lacks most, relative to its share, of the capabilities that they have; few groups
    are then exchanged between parts where that brings both nearer to their shares. A part that
    would be left without any, or without a capability that enough groups have, gets the smallest such group of the part that has
    most; for a capability only one that is no larger than the part shall be. Needs at least P groups.
    """
    targets = shares[:, None] * groups.counts.sum(0)  # [P, 3]
    remaining = targets.copy()
    parts = np.zeros(len(groups.names), np.int64)
    order = np.lexsort((np.random.default_rng([seed, 7]).permutation(len(groups.names)),))
    for group in order:
        counts = groups.counts[group]
        lacking = (remaining / np.maximum(targets, 1e-9)) @ (counts / max(1, counts.sum()))
        has_room = remaining.sum(1) >= counts.sum() / 2
        lacking[~has_room] -= 1e6 if has_room.any() else 0
        parts[group] = int(np.argmax(lacking))
        remaining[parts[group]] -= counts
    if len(parts) <= _FEW:
        _swap(groups, parts, targets)
    for part in range(len(shares)):
        every = np.ones(len(parts), bool)
        _give(groups, parts, part, every, every)
    for capability in range(groups.counts.shape[1]):
        for part in range(len(shares)):
            fits = groups.counts.sum(1) <= targets[part].sum()
            _give(groups, parts, part, groups.counts[:, capability] > 0, fits)
    return parts


def _swap(groups: Groups, parts: NDArray[np.int64], targets: NDArray[np.float64]) -> None:
    """Exchange groups between parts as long as that brings the parts nearer to their targets [P, 3]; few groups come out
    unevenly."""

    def distance() -> float:
        found = np.zeros_like(targets)
        np.add.at(found, parts, groups.counts)
        return float((((found - targets) ** 2) / np.maximum(targets, 1)).sum())

    best, found = distance(), True
    while found:
        found = False
        for a, b in combinations(range(len(parts)), 2):
            if parts[a] == parts[b]:
                continue
            parts[a], parts[b] = parts[b], parts[a]
            if (now := distance()) < best - 1e-9:
                best, found = now, True
            else:
                parts[a], parts[b] = parts[b], parts[a]


def _give(groups: Groups, parts: NDArray[np.int64], part: int, wanted: NDArray[np.bool_], fits: NDArray[np.bool_]) -> None:
    """Move the smallest wanted group that fits to a part that has none, out of the part that has most, if that keeps one."""
    if not wanted.any() or (wanted & (parts == part)).any():
        return
    have = np.bincount(parts[wanted], minlength=int(parts.max()) + 1)
    giver = int(np.argmax(have))
    if have[giver] < 2:
        return
    candidates = np.flatnonzero(wanted & fits & (parts == giver))
    if not len(candidates):
        return
    parts[candidates[np.argmin(groups.counts[candidates].sum(1))]] = part
