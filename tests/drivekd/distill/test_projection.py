"""AGP in coefficient space equals AGP on full vectors, and keeps its promises (docs/method.md, "Asymmetric gradient projection").

N gradients, P parameters; G = g gᵀ; row 0 = CE unless pairs say otherwise
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from drivekd.distill.projection import Pair, agp_coefficients, project

pytestmark = pytest.mark.numerics

Vectors = NDArray[np.float64]  # [N, P]

OWN_PAIRS = [(0, 3), (1, 4), (2, 5)]
FAMILIES = 300
STAGES = [(), (1,), (2,), (1, 2)]


def gram(g: Vectors) -> torch.Tensor:
    return torch.from_numpy(g @ g.T)


def vectors(*rows: Sequence[float]) -> Vectors:
    return np.array(rows, np.float64)


def random_family(seed: int, num_rows: int) -> Vectors:
    """Random gradients that often conflict, of norms from 1e-3 to 1e3, in 2 to 40 dimensions."""
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((num_rows, rng.integers(2, 40)))
    g -= rng.uniform(0, 1.5) * g.mean(0)  # centring makes them oppose each other
    return g * 10.0 ** rng.uniform(-3, 3, (num_rows, 1))


def degenerate_family(seed: int) -> tuple[Vectors, list[Pair]]:
    """CE and 2 to 5 followers, shared or own anchors: scales 1e-6 to 1e3, some followers nearly along or against their anchor,
    some exactly against it, some zero."""
    rng = np.random.default_rng([seed, 1])
    k = int(rng.integers(2, 6))
    pairs = [(0, 1 + c) for c in range(k)] if seed % 2 else [(c, k + c) for c in range(k)]
    g = rng.standard_normal((1 + pairs[-1][1], rng.integers(8, 40)))
    for anchor, follower in pairs:
        kind = rng.integers(5)
        if kind < 2:
            g[follower] = (-1) ** kind * g[anchor] + 10 ** rng.uniform(-4, -1) * g[follower]
        elif kind == 2:
            g[follower] = -g[anchor]
        elif kind == 3 and follower != pairs[-1][1]:  # the last one stays
            g[follower] = 0
    return g * 10.0 ** rng.uniform(-6, 3, (len(g), 1)), pairs


def explicit(g: Vectors, order: Sequence[int], pairs: Sequence[Pair], multiplicity: str, stages: Sequence[int]) -> Vectors:
    """docs/method.md word by word, with a projected copy of every vector. Under a shared anchor zero followers do not count."""
    shared = len({anchor for anchor, _ in pairs}) < len(pairs)
    pairs = [pairs[position - 1] for position in order if not shared or g[pairs[position - 1][1]].any()]
    anchors = [anchor for anchor, _ in pairs]
    merged = []
    for anchor, follower in pairs:
        g_0, g_c = g[anchor], g[follower]
        if 1 in stages and g_c @ g_0 < 0:
            g_c = g_c - (g_c @ g_0) / (g_0 @ g_0) * g_0
        share = 1.0 if multiplicity == "per_capability" else 1.0 / anchors.count(anchor)
        merged.append(share * g_0 + g_c)
    total = np.zeros_like(g[0])
    for i, m_i in enumerate(merged):
        t = m_i.copy()
        for j, m_j in enumerate(merged):
            if 2 in stages and i != j and t @ m_j < 0:
                t -= (t @ m_j) / (m_j @ m_j) * m_j
        total += t
    return total


def relative_error(found: Vectors, expected: Vectors) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- by hand --------------------------------------------------------------------------------------------------------


def test_no_conflict_adds_up() -> None:
    g = vectors([1, 0, 0], [0, 2, 0], [1, 1, 0], [0, 0, 3])
    assert agp_coefficients(gram(g), [1, 2, 3]).tolist() == [3, 1, 1, 1]
    assert agp_coefficients(gram(g), [3, 1, 2], anchor_multiplicity="once").tolist() == pytest.approx([1, 1, 1, 1], abs=1e-15)


def test_one_follower_against_the_anchor() -> None:
    # <g_1, g_0> = -2, ‖g_0‖² = 4: g_1 becomes (-1, 1) + 0.5 (2, 0) = (0, 1); M = (2, 1) = 1.5 g_0 + g_1
    g = vectors([2, 0], [-1, 1])
    assert agp_coefficients(gram(g), [1]).tolist() == [1.5, 1.0]
    assert agp_coefficients(gram(g), [1], stages=[2]).tolist() == [1.0, 1.0]


def test_two_merged_gradients_against_each_other() -> None:
    # M_1 = (1, 3), M_2 = (1, -3): <M_1, M_2> = -8, ‖M‖² = 10. T_1 = M_1 + 0.8 M_2, T_2 = M_2 + 0.8 M_1; sum = 1.8 (M_1 + M_2)
    g = vectors([1, 0], [0, 3], [0, -3])
    assert agp_coefficients(gram(g), [1, 2]).tolist() == pytest.approx([3.6, 1.8, 1.8], abs=1e-15)
    assert agp_coefficients(gram(g), [1, 2], stages=[1]).tolist() == [2, 1, 1]


def test_own_anchors_count_ce_once_and_settle_real_conflicts() -> None:
    # M_1 = (2, 0) + (0, 1) = (2, 1), M_2 = (-2, 0) + (0, 1) = (-2, 1): <M_1, M_2> = -3, ‖M‖² = 5
    g = vectors([2, 0], [-2, 0], [0, 1], [0, 1])
    found = agp_coefficients(gram(g), [1, 2], pairs=[(0, 2), (1, 3)])
    assert found.tolist() == pytest.approx([1.6] * 4, abs=1e-15)


# --- equal to the explicit projections ------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [None, OWN_PAIRS], ids=["shared", "own"])
def test_equal_to_explicit_projections_over_random_families(pairs: list[Pair] | None) -> None:
    """300 families, each under all 6 permutations; stages and multiplicity take turns."""
    num_rows = 4 if pairs is None else 6
    worst = 0.0
    for seed in range(FAMILIES):
        g = random_family(seed, num_rows)
        stages = STAGES[seed % 4]
        multiplicity = ("per_capability", "once")[seed // 4 % 2]
        for order in itertools.permutations([1, 2, 3]):
            found = agp_coefficients(gram(g), order, pairs=pairs, anchor_multiplicity=multiplicity, stages=stages)  # type: ignore[arg-type]
            expected = explicit(g, order, pairs or [(0, 1), (0, 2), (0, 3)], multiplicity, stages)
            worst = max(worst, relative_error(found.numpy() @ g, expected))
    assert worst <= 1e-6  # float64 Gram matrices reach 6.5e-15; sums that nearly cancel lose digits


@pytest.mark.parametrize("stages", STAGES, ids=str)
@pytest.mark.parametrize("multiplicity", ["per_capability", "once"])
def test_equal_to_explicit_projections_where_gradients_degenerate(multiplicity: str, stages: tuple[int, ...]) -> None:
    """Relative to the longest gradient: what is left of a follower against its anchor, or of a sum that cancels, is rounding
    noise of the gradients themselves, in vectors as in coefficients."""
    worst = 0.0
    for seed in range(FAMILIES):
        g, pairs = degenerate_family(seed)
        order = (np.random.default_rng(seed).permutation(len(pairs)) + 1).tolist()
        found = agp_coefficients(gram(g), order, pairs=pairs, anchor_multiplicity=multiplicity, stages=stages)  # type: ignore[arg-type]
        expected = explicit(g, order, pairs, multiplicity, stages)
        worst = max(worst, float(np.linalg.norm(found.numpy() @ g - expected) / np.linalg.norm(g, axis=1).max()))
    assert worst <= 1e-6


def test_a_follower_exactly_against_its_anchor_vanishes() -> None:
    """However much longer it is: 1e9 · 1e-16 of it would be noise of CE's length."""
    for scale in (1.0, 1e3, 1e9):
        g = vectors([1, 2, 3], [-scale, -2 * scale, -3 * scale], [0.1, 0, 0])
        assert agp_coefficients(gram(g), [1, 2]).tolist() == pytest.approx([2, 0, 1], abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_a_sum_that_cancels_projects_nothing(seed: int) -> None:
    """M_1 = g_0 / 2 + g_1 is 1e-9 of its parts: rounding noise as a denominator gave coefficients of 1e7, which fp32 rows cannot
    carry."""
    rng = np.random.default_rng(seed)
    d = rng.standard_normal(6)
    across = 1e3 * rng.standard_normal(6)
    g = np.stack([d, -d / 2 * (1 + 1e-9 * rng.standard_normal()), across - (across @ d) / (d @ d) * d])
    found = agp_coefficients(gram(g), [1, 2], anchor_multiplicity="once", stages=[2])
    assert float(found.abs().max()) == pytest.approx(1.0, abs=1e-9)


def test_the_families_do_conflict() -> None:
    """Otherwise the test above would say nothing about either stage."""
    found = [project(gram(random_family(seed, 6)), [1, 2, 3], pairs=OWN_PAIRS) for seed in range(FAMILIES)]
    assert sum(projection.stage_1_fired > 0 for projection in found) > 100
    assert sum(projection.stage_2_fired > 0 for projection in found) > 100


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_after_stage_1_no_follower_conflicts_with_its_anchor(seed: int) -> None:
    g = random_family(seed, 4)
    for c in (1, 2, 3):
        m_c = agp_coefficients(gram(g[[0, c]]), [1], stages=[1]).numpy() @ g[[0, c]]
        follower = m_c - g[0]
        assert follower @ g[0] >= -1e-9 * np.linalg.norm(follower) * np.linalg.norm(g[0])  # float64 rounding


@pytest.mark.parametrize("seed", range(20))
def test_the_anchor_is_never_projected(seed: int) -> None:
    """Asymmetric: CE's own coefficient only grows, whatever the followers want."""
    found = agp_coefficients(gram(random_family(seed, 4)), [1, 2, 3], stages=[1])
    assert found[0] >= 3
    assert found[1:].tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("multiplicity", ["per_capability", "once"])
def test_without_conflict_nothing_is_projected(seed: int, multiplicity: str) -> None:
    g = np.abs(random_family(seed, 4))
    found = project(gram(g), [2, 3, 1], anchor_multiplicity=multiplicity)  # type: ignore[arg-type]
    assert found.coefficients.tolist() == pytest.approx([3 if multiplicity == "per_capability" else 1, 1, 1, 1], abs=1e-15)
    assert (found.stage_1_fired, found.stage_2_fired) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_stage_1_does_not_see_the_order(seed: int) -> None:
    g = gram(random_family(seed, 4))
    found = [agp_coefficients(g, order, stages=[1]) for order in itertools.permutations([1, 2, 3])]
    assert all(torch.allclose(found[0], other, rtol=1e-12) for other in found)  # three terms summed in another order


def test_stage_2_sees_the_order() -> None:
    changed = 0
    for seed in range(50):
        g = random_family(seed, 6)
        found = [agp_coefficients(gram(g), order, pairs=OWN_PAIRS) @ torch.from_numpy(g) for order in ([1, 2, 3], [3, 2, 1])]
        changed += not torch.allclose(found[0], found[1])
    assert changed > 10


@pytest.mark.parametrize("seed", range(20))
def test_renaming_the_capabilities_renames_the_coefficients(seed: int) -> None:
    """Order speaks of pairs: permuting the rows and the order together is the same projection."""
    g = random_family(seed, 4)
    renamed = g[[0, 2, 3, 1]]  # old row 1 is new row 3, old 2 is new 1, old 3 is new 2
    old = agp_coefficients(gram(g), [1, 2, 3])
    new = agp_coefficients(gram(renamed), [3, 1, 2])
    assert new.tolist() == pytest.approx(old[[0, 2, 3, 1]].tolist(), rel=1e-9)  # the same sums in another order


@pytest.mark.parametrize("pairs", [None, OWN_PAIRS], ids=["shared", "own"])
@pytest.mark.parametrize("seed", range(10))
def test_one_scale_for_all_does_not_matter(seed: int, pairs: list[Pair] | None) -> None:
    g = random_family(seed, 4 if pairs is None else 6)
    found = [agp_coefficients(gram(scale * g), [1, 2, 3], pairs=pairs) for scale in (1.0, 1024.0)]
    assert torch.equal(*found)  # a power of two: not one bit differs


@pytest.mark.parametrize("pairs", [None, OWN_PAIRS], ids=["shared", "own"])
@pytest.mark.parametrize("seed", range(10))
def test_a_rotation_of_parameter_space_does_not_matter(seed: int, pairs: list[Pair] | None) -> None:
    g = random_family(seed, 4 if pairs is None else 6)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((g.shape[1], g.shape[1])))
    found = [agp_coefficients(gram(h), [1, 2, 3], pairs=pairs) for h in (g, g @ rotation)]
    assert found[1].tolist() == pytest.approx(found[0].tolist(), rel=1e-6)  # float64 rounding of rotated products


# --- what is zero ---------------------------------------------------------------------------------------------------


def test_only_followers_with_a_gradient_count() -> None:
    """K counts the capabilities with a non-zero gradient: a routed micro-batch has K = 1."""
    g = vectors([1, 0], [0, 1], [0, 0], [0, 0])
    assert agp_coefficients(gram(g), [1, 2, 3]).tolist() == [1, 1, 0, 0]
    assert agp_coefficients(gram(g), [3, 2, 1], anchor_multiplicity="once").tolist() == [1, 1, 0, 0]


def test_ce_alone_passes_once() -> None:
    g = vectors([1, 2], [0, 0], [0, 0], [0, 0])
    for multiplicity in ("per_capability", "once"):
        found = agp_coefficients(gram(g), [1, 2, 3], anchor_multiplicity=multiplicity)  # type: ignore[arg-type]
        assert found.tolist() == [1, 0, 0, 0]


def test_an_own_anchor_without_follower_still_settles_conflicts() -> None:
    g = vectors([1, 0], [-1, 0.5], [0, 0], [0, 1])
    found = project(gram(g), [1, 2], pairs=[(0, 2), (1, 3)])
    assert found.stage_2_fired > 0
    m_1, m_2 = g[0], g[1] + g[3]
    a, b = -(m_1 @ m_2) / (m_2 @ m_2), -(m_1 @ m_2) / (m_1 @ m_1)  # T_1 = M_1 + a M_2, T_2 = M_2 + b M_1
    assert found.coefficients[[0, 1, 3]].tolist() == pytest.approx([1 + b, 1 + a, 1 + a], abs=1e-12)


@pytest.mark.parametrize("pairs", [None, OWN_PAIRS], ids=["shared", "own"])
def test_a_zero_anchor_projects_nothing_and_stays_finite(pairs: list[Pair] | None) -> None:
    g = random_family(0, 4 if pairs is None else 6)
    g[: 1 if pairs is None else 3] = 0
    found = project(gram(g), [1, 2, 3], pairs=pairs)
    assert bool(torch.isfinite(found.coefficients).all())
    assert found.stage_1_fired == 0


def test_all_zero_is_zero() -> None:
    found = project(torch.zeros(4, 4), [1, 2, 3])
    assert bool(torch.isfinite(found.coefficients).all())
    assert (found.stage_1_fired, found.stage_2_fired) == (0, 0)
    assert found.cosines == (0.0, 0.0, 0.0)


# --- what it reports, and what it refuses ---------------------------------------------------------------------------


def test_cosines_and_counts_are_reported() -> None:
    g = vectors([2, 0], [-1, 1], [3, 0])
    found = project(gram(g), [1, 2])
    assert found.cosines == pytest.approx((-(0.5**0.5), 1.0))
    assert found.stage_1_fired == 1


def test_float32_comes_in_and_float64_goes_out() -> None:
    g = random_family(1, 4)
    assert agp_coefficients(gram(g).float(), [1, 2, 3]).dtype == torch.float64


@pytest.mark.parametrize("order", [[1, 2], [0, 1, 2], [1, 1, 2], [1, 2, 3, 4], []])
def test_an_order_that_is_no_permutation_is_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match=r"permutation of 1\.\.3, got"):
        agp_coefficients(torch.eye(4), order)


@pytest.mark.parametrize("shape", [(3, 4), (4,), (1, 4, 4)])
def test_a_gram_matrix_that_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square"):
        agp_coefficients(torch.zeros(shape), [1, 2, 3])
