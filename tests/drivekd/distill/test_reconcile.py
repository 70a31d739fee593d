"""From Gram matrix to coefficients: weights enter rightly, the order follows from the step, the record says what was done.

Rows of g are raw gradients; g @ g.T is what the reconciler sees
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from drivekd.distill.projection import agp_coefficients
from drivekd.distill.reconcile import Reconciler, ReconcileRecord, ReconcileSettings, merge_records
from drivekd.distill.weighting import DynamicSettings, Weighting, weighting_for
from drivekd.errors import ConfigError, TrainingError

pytestmark = pytest.mark.numerics

Vectors = NDArray[np.float64]

CAPABILITIES = ("perception", "reasoning", "planning")
SHARED = (("ce", *CAPABILITIES), dict.fromkeys(CAPABILITIES, 0), {name: 1 + i for i, name in enumerate(CAPABILITIES)})
OWN_NAMES = (*(f"ce_{name}" for name in CAPABILITIES), *CAPABILITIES)
OWN = (OWN_NAMES, {name: i for i, name in enumerate(CAPABILITIES)}, {name: 3 + i for i, name in enumerate(CAPABILITIES)})
WEIGHTS = {"ce": 2.0, "perception": 10.0, "reasoning": 0.5, "planning": 3.0}
LOSSES = dict.fromkeys(SHARED[0], 1.0)


def reconciler(settings: ReconcileSettings | None = None, weighting: Weighting | None = None, *, seed: int = 0) -> Reconciler:
    settings = settings or ReconcileSettings()
    rows = OWN if settings.anchor == "own" else SHARED
    return Reconciler(*rows, weighting or weighting_for("static", WEIGHTS), settings, seed=seed)


def gradients(seed: int, num_rows: int = 4) -> Vectors:
    """They oppose each other: every stage has work."""
    g = np.random.default_rng(seed).standard_normal((num_rows, 6))
    return g - 1.2 * g.mean(0)


def gram(g: Vectors) -> torch.Tensor:
    return torch.from_numpy(g @ g.T)


# --- coefficients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", ["shared", "own"])
@pytest.mark.parametrize("seed", range(10))
def test_the_update_is_agp_of_the_weighted_gradients(seed: int, anchor: str) -> None:
    """Weighting the rows first and projecting the weighted ones gives the same vector."""
    settings = ReconcileSettings(anchor=anchor)  # type: ignore[arg-type]
    own = anchor == "own"
    g = gradients(seed, 6 if own else 4)
    w = np.array([2.0, 2.0, 2.0, 10.0, 0.5, 3.0] if own else [2.0, 10.0, 0.5, 3.0])
    found, _ = reconciler(settings, seed=seed)(gram(g), LOSSES, step=7)
    order = (np.random.default_rng([seed, 2, 7]).permutation(3) + 1).tolist()
    expected = agp_coefficients(gram(w[:, None] * g), order, pairs=[(0, 3), (1, 4), (2, 5)] if own else None).numpy() @ (
        w[:, None] * g
    )
    np.testing.assert_allclose(found.numpy() @ g, expected, rtol=1e-9, atol=1e-9)  # float64, factors of 10 apart


def test_sum_adds_the_weighted_gradients() -> None:
    found, record = reconciler(ReconcileSettings(method="sum"))(gram(gradients(0)), LOSSES, step=0)
    assert found.tolist() == [2.0, 10.0, 0.5, 3.0]
    assert (record.stage_1_fired, record.stage_2_fired) == (0, 0)


@pytest.mark.parametrize("multiplicity", ["per_capability", "once"])
def test_own_anchors_count_ce_once_whatever_the_multiplicity(multiplicity: str) -> None:
    settings = ReconcileSettings(anchor="own", anchor_multiplicity=multiplicity)  # type: ignore[arg-type]
    found, _ = reconciler(settings)(torch.eye(6, dtype=torch.float64), LOSSES, step=0)  # no conflict
    assert found.tolist() == [2.0, 2.0, 2.0, 10.0, 0.5, 3.0]


@pytest.mark.parametrize(("multiplicity", "ce"), [("per_capability", 3 * 2.0), ("once", 2.0)])
def test_a_shared_anchor_counts_as_configured(multiplicity: str, ce: float) -> None:
    settings = ReconcileSettings(anchor_multiplicity=multiplicity)  # type: ignore[arg-type]
    found, _ = reconciler(settings)(torch.eye(4, dtype=torch.float64), LOSSES, step=0)
    assert found.tolist() == pytest.approx([ce, 10.0, 0.5, 3.0], rel=1e-15)


def test_ce_of_a_capability_without_teacher_takes_part() -> None:
    names, anchors, _ = OWN
    alone = Reconciler(
        names[:4],
        anchors,
        {"planning": 3},
        weighting_for("static", {"ce": 1.0, "planning": 1.0}),
        ReconcileSettings(anchor="own"),
        seed=0,
    )
    found, record = alone(torch.eye(4, dtype=torch.float64), {}, step=0)
    assert found.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert record.ce_share == pytest.approx(0.75)


def test_without_teachers_ce_is_the_update() -> None:
    alone = Reconciler(["ce"], SHARED[1], {}, weighting_for("static", {"ce": 2.0}), ReconcileSettings(), seed=0)
    found, record = alone(torch.tensor([[4.0]], dtype=torch.float64), {"ce": 1.0}, step=0)
    assert found.tolist() == [2.0]
    assert (record.ce_share, record.capabilities) == (1.0, 0)


# --- the order ------------------------------------------------------------------------------------------------------


def coefficients_of(settings: ReconcileSettings, seed: int, step: int, micro_batch: int | None = None) -> list[float]:
    own = settings.anchor == "own"
    found, _ = reconciler(settings, seed=seed)(gram(gradients(3, 6 if own else 4)), LOSSES, step=step, micro_batch=micro_batch)
    return found.tolist()  # type: ignore[no-any-return]


def test_the_order_is_a_function_of_seed_step_and_micro_batch() -> None:
    """The same each time it is asked; over many steps, seeds or micro-batches not always the same."""
    own, single = ReconcileSettings(anchor="own"), ReconcileSettings(unit="micro_batch", stages=(2,))
    assert coefficients_of(own, 1, 5) == coefficients_of(own, 1, 5)
    assert len({tuple(coefficients_of(own, 1, step)) for step in range(12)}) > 1
    assert len({tuple(coefficients_of(own, seed, 5)) for seed in range(12)}) > 1
    assert coefficients_of(single, 1, 5, 2) == coefficients_of(single, 1, 5, 2)
    assert len({tuple(coefficients_of(single, 1, 5, index)) for index in range(12)}) > 1


# --- micro-batches --------------------------------------------------------------------------------------------------


def test_a_routed_micro_batch_has_one_capability() -> None:
    """K = 1: CE counts once per micro-batch, not three times (docs/method.md, "Knobs")."""
    g = gradients(0)
    g[[1, 3]] = 0
    found, record = reconciler(ReconcileSettings(unit="micro_batch"))(
        gram(g), {"ce": 1.0, "reasoning": 1.0}, step=0, micro_batch=0
    )
    weighted = np.array([2.0, 0.5])[:, None] * g[[0, 2]]
    expected = agp_coefficients(gram(weighted), [1]).numpy() * [2.0, 0.5]
    assert found[[0, 2]].tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert (record.capabilities, list(record.conflict_cosine)) == (1, ["reasoning"])


def record_of(**changes: object) -> ReconcileRecord:
    values: dict[str, object] = {
        "weight": {"ce": 1.0}, "gradient_norm": {"ce": 1.0}, "conflict_cosine": {}, "stage_1_fired": 0,
        "stage_2_fired": 0, "ce_share": 1.0, "capabilities": 0,
    }  # fmt: skip
    return ReconcileRecord(**(values | changes))  # type: ignore[arg-type]


def test_merged_records_add_counts_and_average_what_is_there() -> None:
    first = record_of(conflict_cosine={"planning": -0.5}, stage_1_fired=1, ce_share=0.5, capabilities=1)
    merged = merge_records(
        [first, record_of(gradient_norm={"ce": 3.0}), record_of(conflict_cosine={"planning": 0.1}, capabilities=1)]
    )
    assert merged.conflict_cosine == {"planning": pytest.approx(-0.2)}
    assert merged.gradient_norm == {"ce": pytest.approx(5 / 3)}
    assert (merged.stage_1_fired, merged.capabilities, merged.units) == (1, 2, 3)
    assert merged.ce_share == pytest.approx(2.5 / 3)
    assert merged.metrics()["projected_capabilities"] == pytest.approx(2 / 3)


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", ["shared", "own"])
def test_relative_signals_are_as_long_as_their_weight_says(anchor: str) -> None:
    """CE's length is that of its whole gradient, however many rows it has."""
    own = anchor == "own"
    g = gradients(1, 6 if own else 4)
    settings = ReconcileSettings(method="sum", anchor=anchor)  # type: ignore[arg-type]
    found, record = reconciler(settings, weighting_for("relative", WEIGHTS))(gram(g), LOSSES, step=0)
    ce = np.linalg.norm(g[:3].sum(0) if own else g[0])
    lengths = [float(found[-3 + i]) * np.linalg.norm(g[-3 + i]) / ce for i in range(3)]
    assert lengths == pytest.approx([10.0, 0.5, 3.0], rel=1e-12)
    assert record.weight["ce"] == 2.0


def test_relative_weights_need_a_ce_gradient() -> None:
    g = gradients(0)
    g[0] = 0
    with pytest.raises(TrainingError, match=r"step 4: .*relative"):
        reconciler(weighting=weighting_for("relative", WEIGHTS))(gram(g), {}, step=3)


def test_dynamic_weights_are_logged_as_used() -> None:
    dynamic = weighting_for("dynamic", WEIGHTS, DynamicSettings(learning_rate=0.5))
    steps = reconciler(ReconcileSettings(method="sum"), dynamic)
    for step in range(3):
        before = dynamic.weights({})
        found, record = steps(gram(gradients(step)), LOSSES, step=step)
        assert list(record.weight.values()) == found.tolist()
        assert record.weight == before != dynamic.weights({})


def test_dynamic_state_goes_through_the_reconciler() -> None:
    def fresh() -> Reconciler:
        return reconciler(weighting=weighting_for("dynamic", WEIGHTS, DynamicSettings(learning_rate=0.1)))

    first, second = fresh(), fresh()
    first(gram(gradients(0)), LOSSES, step=0)
    second.load_state_dict(first.state_dict())
    found = [one(gram(gradients(1)), LOSSES, step=1)[0] for one in (first, second)]
    assert torch.equal(*found)


# --- the record -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_ces_share_is_its_part_along_the_update(seed: int) -> None:
    g = gradients(seed)
    found, record = reconciler()(gram(g), LOSSES, step=0)
    update = found.numpy() @ g
    assert record.ce_share == pytest.approx(float(found[0]) * g[0] @ update / (update @ update), rel=1e-9)
    assert record.gradient_norm == pytest.approx(dict(zip(SHARED[0], np.linalg.norm(g, axis=1), strict=True)), rel=1e-12)


def test_cosines_are_those_of_the_raw_gradients() -> None:
    """Weights are positive: they turn nothing."""
    g = gradients(2)
    _, record = reconciler()(gram(g), LOSSES, step=0)
    expected = {name: g[row] @ g[0] / np.linalg.norm(g[row]) / np.linalg.norm(g[0]) for name, row in SHARED[2].items()}
    assert record.conflict_cosine == pytest.approx(expected, rel=1e-12)
    assert record.stage_1_fired == sum(cosine < 0 for cosine in expected.values())


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_named(value: float) -> None:
    bad = torch.eye(4, dtype=torch.float64)
    bad[2, 2] = value
    with pytest.raises(TrainingError, match=r"step 3: .*'reasoning'"):
        reconciler()(bad, LOSSES, step=2)


def test_own_anchors_in_single_micro_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"projection\.anchor"):
        ReconcileSettings(unit="micro_batch", anchor="own")
