"""AGP, asymmetric gradient projection, in coefficient space (docs/method.md, "Asymmetric gradient projection").

Both stages only ever combine the N raw gradients linearly, so they run on the Gram matrix G = g gᵀ [N, N] and give one
coefficient for each gradient; the update is then one weighted sum. M_c and T_c below are rows of such coefficients.

A Gram matrix squares, so that in float64 it cannot tell a sum of gradients shorter than 1e-7 of its parts from zero. Such a sum
is zero here: as a denominator it projects nothing, and a follower exactly against its anchor vanishes. Rows in fp32 carry
noise of that size themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Pair = tuple[int, int]

ROUNDING = 64 * torch.finfo(torch.float64).eps  # of the sum of a dot product's terms: 3 to 6 rows leave a few eps


@dataclass(frozen=True)
class Projection:
    """coefficients [N] float64; cosines: <follower, anchor> before projection, by pair; how often each stage fired."""

    coefficients: Tensor
    cosines: tuple[float, ...]
    stage_1_fired: int
    stage_2_fired: int


def agp_coefficients(
    gram: Tensor,
    order: Sequence[int],
    *,
    pairs: Sequence[Pair] | None = None,
    anchor_multiplicity: Literal["per_capability", "once"] = "per_capability",
    stages: Sequence[int] = (1, 2),
) -> Tensor:
    """Coefficients [N], float64, of the raw gradients in the projected update; arguments and errors as `project` has them.

    Drive-KD's AGP (arXiv 2601.21288), with the formulas of docs/method.md, "Asymmetric gradient projection". By hand, for labels'
    g_0 = (1, 0) and one signal's g_1 = (-1, 1), G = [[1, -1], [-1, 2]]: stage 1 takes the part against g_0 out of g_1, which is
    g_1 + 1 g_0 = (0, 1). M_1 = g_0 + (g_1 + g_0) = 2 g_0 + 1 g_1, the vector (1, 1); with one signal stage 2 has nothing to do.

        >>> gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> coefficients = agp_coefficients(gradients @ gradients.T, [1])
        >>> coefficients.tolist()
        [2.0, 1.0]
        >>> (coefficients.float() @ gradients).tolist()
        [1.0, 1.0]

    Two signals that agree with the labels are left alone; the labels, shared by both, count twice as released, or once:

        >>> agp_coefficients(torch.eye(3), [2, 1]).tolist()
        [2.0, 1.0, 1.0]
        >>> agp_coefficients(torch.eye(3), [2, 1], anchor_multiplicity="once").tolist()
        [1.0, 1.0, 1.0]
    """
    return project(gram, order, pairs=pairs, anchor_multiplicity=anchor_multiplicity, stages=stages).coefficients


def project(
    gram: Tensor,
    order: Sequence[int],
    *,
    pairs: Sequence[Pair] | None = None,
    anchor_multiplicity: Literal["per_capability", "once"] = "per_capability",
    stages: Sequence[int] = (1, 2),
) -> Projection:
    """Run AGP on a Gram matrix.

    gram [N, N]: dot products of the weighted gradients. pairs: rows (anchor, follower); default (0, 1) .. (0, K), row 0 = CE.
    order: a permutation of 1..K over the pairs, in which stage 2 visits them. anchor_multiplicity: whether an anchor shared by
    several pairs counts once for each (as released) or once altogether. Pairs without any gradient do not count; an anchor
    all of whose followers are zero is passed through once.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be square [N, N], got {list(gram.shape)}")
    if pairs is None:
        pairs = [(0, follower) for follower in range(1, gram.shape[0])]
    if sorted(order) != list(range(1, len(pairs) + 1)):
        raise ValueError(f"order must be a permutation of 1..{len(pairs)}, got {list(order)}")
    gram = gram.double()
    active = [pairs[position - 1] for position in order if _is_active(gram, pairs, pairs[position - 1])]
    merged, fired_1 = _stage_1(gram, active, anchor_multiplicity, project_followers=1 in stages)
    total, fired_2 = _stage_2(gram, merged) if 2 in stages else (merged.sum(0), 0)
    for anchor in {anchor for anchor, _ in pairs} - {anchor for anchor, _ in active}:
        total[anchor] += 1.0
    cosines = tuple(_cosine(gram, anchor, follower) for anchor, follower in pairs)
    return Projection(total, cosines, fired_1, fired_2)


def _is_active(gram: Tensor, pairs: Sequence[Pair], pair: Pair) -> bool:
    anchor, follower = pair
    shared = sum(other == anchor for other, _ in pairs) > 1
    return bool(gram[follower, follower] > 0) or (not shared and bool(gram[anchor, anchor] > 0))


def _stage_1(gram: Tensor, active: Sequence[Pair], anchor_multiplicity: str, *, project_followers: bool) -> tuple[Tensor, int]:
    """M_c = share · g_0 + g_c - min(0, <g_c, g_0>) / ‖g_0‖² g_0; rows [K, N] in the order of `active`."""
    merged = gram.new_zeros(len(active), gram.shape[0])
    fired = 0
    for row, (anchor, follower) in enumerate(active):
        sharers = sum(other == anchor for other, _ in active)
        merged[row, anchor] += 1.0 if anchor_multiplicity == "per_capability" else 1.0 / sharers
        dot, norm, own = gram[follower, anchor], gram[anchor, anchor], gram[follower, follower]
        if not (project_followers and dot < 0 and norm > 0):
            merged[row, follower] += 1.0
            continue
        fired += 1
        if own - dot * dot / norm > ROUNDING * own:  # else nothing is left of the follower
            merged[row, follower] += 1.0
            merged[row, anchor] -= dot / norm
    return merged, fired


def _stage_2(gram: Tensor, merged: Tensor) -> tuple[Tensor, int]:
    """T_i -= <T_i, M_j> / ‖M_j‖² M_j whenever they conflict, against the original M_j. Returns Σ T_i [N]."""
    norms = ((merged @ gram) * merged).sum(1)
    solid = norms > ROUNDING * ((merged.abs() @ gram.abs()) * merged.abs()).sum(1)
    total = torch.zeros_like(gram[0])
    fired = 0
    for i in range(len(merged)):
        projected = merged[i].clone()
        for j in range(len(merged)):
            dot = projected @ gram @ merged[j]
            if i != j and dot < 0 and solid[j]:
                projected -= dot / norms[j] * merged[j]
                fired += 1
        total += projected
    return total, fired


def _cosine(gram: Tensor, a: int, b: int) -> float:
    norm = float((gram[a, a] * gram[b, b]).sqrt())
    return float(gram[a, b]) / norm if norm > 0 else 0.0
