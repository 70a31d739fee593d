"""Weights of the loss's terms: sums, floors, one step by hand, gradients against autograd, and resuming bit for bit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from drivekd.distill.weighting import (
    DynamicSettings,
    DynamicWeights,
    RelativeWeights,
    StaticWeights,
    Weighting,
    gradnorm_gradient,
    softplus,
    softplus_inverse,
    weighting_for,
    with_sum_and_floor,
)
from drivekd.errors import CheckpointError, ConfigError, TrainingError

pytestmark = pytest.mark.numerics

TERMS = ("ce", "perception", "reasoning", "planning")
SIGNALS = TERMS[1:]


def family(seed: int) -> dict[str, float]:
    """Static weights from 1e-2 to 1e6; CE's above its floor."""
    rng = np.random.default_rng(seed)
    return {"ce": float(rng.uniform(0.7, 2))} | {name: float(10 ** rng.uniform(-2, 6)) for name in SIGNALS}


def drive(weighting: Weighting, seed: int, steps: int) -> list[dict[str, float]]:
    """What each of some random steps used; now and then a signal has no samples."""
    used = []
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        norms = {name: float(10 ** rng.uniform(-3, 3)) for name in TERMS}
        norms |= {name: 0.0 for name in SIGNALS if rng.uniform() < 0.3}
        used.append(weighting.weights(norms))
        weighting.observe(norms, {name: float(rng.uniform(0.1, 5)) for name, norm in norms.items() if norm > 0})
    return used


# --- static and relative --------------------------------------------------------------------------------------------


def test_static_weights_stay() -> None:
    static = family(0)
    assert drive(StaticWeights(static), 0, 5) == [static] * 5


def test_relative_signals_are_weight_times_as_long_as_ce() -> None:
    found = RelativeWeights({"ce": 2.0, "perception": 0.5, "planning": 3.0}).weights(
        {"ce": 4.0, "perception": 0.01, "planning": 0.0}
    )
    assert found == {"ce": 2.0, "perception": 0.5 * 4.0 / 0.01, "planning": 3.0}


@pytest.mark.parametrize("kind", ["static", "relative"])
def test_weights_that_remember_nothing_refuse_a_dynamic_run(kind: str) -> None:
    weighting = weighting_for(kind, family(0))  # type: ignore[arg-type]
    assert weighting.state_dict() == {}
    with pytest.raises(CheckpointError, match="not dynamic"):
        weighting.load_state_dict({"ce": {"weight": 1.0}})


# --- softplus -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_and_its_inverse_agree_from_tiny_to_1e6(dtype: torch.dtype) -> None:
    w = torch.logspace(-6, 6, 200, dtype=torch.float64).to(dtype)
    found = softplus(softplus_inverse(w))
    # a few eps; where w < 1, a = log w carries |a| ≤ 14 eps of its own
    torch.testing.assert_close(found, w, rtol=20 * torch.finfo(dtype).eps, atol=0.0)


def test_the_textbook_inverse_overflows_where_ours_does_not() -> None:
    w = torch.tensor([88.0, 89.0, 4000.0])
    assert torch.isinf(torch.log(torch.exp(w) - 1)).tolist() == [False, True, True]
    assert softplus_inverse(w).tolist() == w.tolist()


# --- the objective --------------------------------------------------------------------------------------------------


def objective(w: torch.Tensor, norms: torch.Tensor, static: torch.Tensor, rates: torch.Tensor, alpha: float) -> torch.Tensor:
    """Σ |G - target|, docs/method.md, "Losses and weights", word by word; the target is a constant."""
    lengths = w * norms
    target = static / static.sum() * lengths.sum() * (rates / rates.mean()) ** alpha
    return (lengths - target.detach()).abs().sum()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("seed", range(10))
def test_the_gradient_equals_autograds(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    w, norms, static, rates = (torch.from_numpy(10 ** rng.uniform(-2, 2, 4)) for _ in range(4))
    w.requires_grad_()
    (expected,) = torch.autograd.grad(objective(w, norms, static, rates, alpha), w)
    found = gradnorm_gradient(w.tolist(), norms.tolist(), static.tolist(), rates.tolist(), alpha)
    assert found == pytest.approx(expected.tolist(), rel=1e-12)


def test_one_step_by_hand() -> None:
    """G = (2, 1·6) = (2, 6), ΣG = 8, p = (1/2, 1/2): targets (4, 4). CE is too short, the signal too long.

    AdamW's first step is its rate times the gradient's sign: a moves by ±0.1; then both are scaled to a sum of 2.
    """
    weighting = DynamicWeights({"ce": 1.0, "planning": 1.0}, DynamicSettings(learning_rate=0.1))
    weighting.observe({"ce": 2.0, "planning": 6.0}, {"ce": 1.0, "planning": 1.0})
    a = math.log(math.e - 1)
    ce, planning = math.log1p(math.exp(a + 0.1)), math.log1p(math.exp(a - 0.1))
    expected = {"ce": 2 * ce / (ce + planning), "planning": 2 * planning / (ce + planning)}
    assert weighting.weights({}) == pytest.approx(expected, rel=1e-7)  # AdamW's ε = 1e-8 beside gradients of 1 to 4


def test_steps_equal_autograd_through_softplus() -> None:
    """The obvious way: a is the parameter, autograd goes through softplus; weights small enough for its slope to matter."""
    static, settings = {"ce": 1.5, "perception": 0.2, "planning": 0.7}, DynamicSettings(alpha=0.5, learning_rate=0.05)
    weighting = DynamicWeights(static, settings)
    p = torch.tensor(list(static.values()), dtype=torch.float64)
    a = [torch.nn.Parameter(softplus_inverse(weight)) for weight in p]
    optimizer = torch.optim.AdamW(a, lr=settings.learning_rate, weight_decay=0.0)
    first = None
    for step in range(6):
        norms, losses = (torch.from_numpy(np.random.default_rng([step, k]).uniform(0.1, 3, 3)) for k in (0, 1))
        weighting.observe(dict(zip(static, norms.tolist(), strict=True)), dict(zip(static, losses.tolist(), strict=True)))
        first = losses if first is None else first
        optimizer.zero_grad()
        objective(softplus(torch.stack(list(a))), norms, p, losses / first, settings.alpha).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        w = with_sum_and_floor(dict(zip(static, softplus(torch.stack(list(a))).tolist(), strict=True)), float(p.sum()), 0.6)
        for raw, weight in zip(a, w.values(), strict=True):
            raw.data = softplus_inverse(torch.tensor(weight, dtype=torch.float64))
        assert weighting.weights({}) == pytest.approx(w, rel=1e-9)  # AdamW's ε and float64 rounding


def test_alpha_favours_the_term_that_learns_slowly() -> None:
    """Equal lengths: α = 0 has nothing to do; with α = 1 CE (r = 1) gets more than planning (r = 1/2)."""
    found = {}
    for alpha in (0.0, 1.0):
        weighting = DynamicWeights({"ce": 1.0, "planning": 1.0}, DynamicSettings(alpha=alpha, learning_rate=0.1))
        for losses in ({"ce": 3.0, "planning": 4.0}, {"ce": 3.0, "planning": 2.0}):
            weighting.observe({"ce": 1.0, "planning": 1.0}, losses)
        found[alpha] = weighting.weights({})
    assert found[0.0] == {"ce": 1.0, "planning": 1.0}
    assert found[1.0]["ce"] > 1.04 > 0.96 > found[1.0]["planning"]  # one step of AdamW: 0.1 sigmoid(a) = .06


def test_lengths_come_closer_to_their_shares() -> None:
    norms, static = {"ce": 1.0, "planning": 9.0}, {"ce": 2.0, "planning": 2.0}
    weighting = DynamicWeights(static, DynamicSettings(learning_rate=0.01))
    for _ in range(300):
        used = weighting.weights(norms)
        weighting.observe(norms, norms)
    assert used["ce"] * 1.0 == pytest.approx(used["planning"] * 9.0, rel=0.1)  # AdamW of rate .01 oscillates about the goal


# --- promises -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [3e-4, 0.3])
@pytest.mark.parametrize("seed", range(10))
def test_sum_sign_and_floor_hold_after_every_step(seed: int, rate: float) -> None:
    static = family(seed)
    for used in drive(DynamicWeights(static, DynamicSettings(alpha=0.5, learning_rate=rate)), seed, 40):
        assert sum(used.values()) == pytest.approx(sum(static.values()), rel=1e-14)
        assert all(math.isfinite(weight) and weight > 0 for weight in used.values())
        assert used["ce"] >= 0.6


def test_the_first_step_uses_the_static_weights() -> None:
    """To the bit, up to 1e6: the released code overflows above 88."""
    static = {"ce": 1.0, "perception": 1e6, "reasoning": 4000.0, "planning": 89.0}
    assert DynamicWeights(static, DynamicSettings()).weights({}) == static


def test_ce_reaches_its_floor_and_leaves_it_again() -> None:
    """A clamp inside the objective would have no gradient below the floor, and CE would stay."""
    weighting = DynamicWeights({"ce": 1.0, "planning": 1.0}, DynamicSettings(learning_rate=0.1))
    for norms in [{"ce": 9.0, "planning": 1.0}] * 30:
        weighting.observe(norms, norms)
    assert weighting.weights({})["ce"] == 0.6
    for norms in [{"ce": 1.0, "planning": 9.0}] * 60:
        weighting.observe(norms, norms)
    assert weighting.weights({})["ce"] > 1.0


def test_what_a_step_uses_is_not_what_it_learns() -> None:
    """docs/method.md, "What the released code gets wrong", defect 5: logged weights are the ones that were used."""
    weighting = DynamicWeights({"ce": 1.0, "planning": 1.0}, DynamicSettings(learning_rate=0.1))
    norms = {"ce": 1.0, "planning": 9.0}
    used = weighting.weights(norms)
    weighting.observe(norms, norms)
    assert used == {"ce": 1.0, "planning": 1.0} != weighting.weights(norms)


def test_an_absent_term_is_only_scaled() -> None:
    """Its ratio to another absent one stays, to the bit its moments stay."""
    weighting = DynamicWeights(dict.fromkeys(TERMS, 1.0), DynamicSettings(learning_rate=0.1))
    everything = dict(zip(TERMS, (1.0, 2.0, 3.0, 4.0), strict=True))
    weighting.observe(everything, everything)
    before, state = weighting.weights({}), weighting.state_dict()
    weighting.observe({"ce": 1.0, "planning": 4.0, "perception": 0.0}, everything)
    after = weighting.weights({})
    assert after["perception"] / after["reasoning"] == pytest.approx(before["perception"] / before["reasoning"], rel=1e-14)
    for term, rests in (("perception", True), ("reasoning", True), ("planning", False), ("ce", False)):
        assert (weighting.state_dict()[term]["exp_avg"] == state[term]["exp_avg"]) is rests


def test_one_term_by_itself_moves_nothing() -> None:
    """AdamW's momentum of earlier steps neither."""
    weighting = DynamicWeights({"ce": 1.0, "planning": 3.0}, DynamicSettings(learning_rate=0.1))
    weighting.observe({"ce": 5.0, "planning": 1.0}, {"ce": 2.0, "planning": 1.0})
    before = weighting.weights({})
    weighting.observe({"ce": 5.0, "planning": 0.0}, {"ce": 2.0})
    assert weighting.weights({}) == before


def test_a_term_of_weight_0_is_off() -> None:
    static = {"ce": 1.0, "perception": 0.0, "planning": 2.0}
    used = drive(DynamicWeights(static, DynamicSettings(learning_rate=0.1)), 0, 10)[-1]
    assert used["perception"] == 0.0
    assert sum(used.values()) == pytest.approx(3.0, rel=1e-14)


def test_sum_and_floor_by_hand() -> None:
    assert with_sum_and_floor({"ce": 1.0, "planning": 3.0}, 8.0, 0.6) == {"ce": 2.0, "planning": 6.0}
    found = with_sum_and_floor({"ce": 1.0, "perception": 9.0, "planning": 10.0}, 2.5, 0.6)  # .125 would be CE's
    assert found == pytest.approx({"ce": 0.6, "perception": 0.9, "planning": 1.0}, rel=1e-15)


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_resuming_is_equal_bit_for_bit(seed: int, stop: int) -> None:
    """Through JSON text, as a checkpoint does it."""
    static, settings = family(seed), DynamicSettings(alpha=0.5, learning_rate=0.05)
    whole = DynamicWeights(static, settings)
    drive(whole, seed, stop)
    resumed = DynamicWeights(static, settings)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert drive(resumed, seed + 50, 10) == drive(whole, seed + 50, 10)
    assert resumed.state_dict() == whole.state_dict()


def test_loading_forgets_what_was_there() -> None:
    static, settings = family(0), DynamicSettings(learning_rate=0.05)
    fresh, used = DynamicWeights(static, settings), DynamicWeights(static, settings)
    drive(used, 0, 5)
    used.load_state_dict(fresh.state_dict())
    assert drive(used, 1, 5) == drive(fresh, 1, 5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"ce": {"weight": 1.0}}, "this run"),
        ({"ce": {"weight": 1.0}, "planning": {"exp_avg": 1.0}}, "planning has"),
        ({"ce": {"weight": 1.0}, "planning": {"weight": 1.0, "momentum": 1.0}}, "expected some of"),
    ],
)
def test_a_state_of_another_run_is_refused(state: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        DynamicWeights({"ce": 1.0, "planning": 1.0}, DynamicSettings()).load_state_dict(state)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"ce": 0.0, "planning": 1.0}, "ce_weight"),
        ({"ce": 1.0}, "nothing to balance"),
        ({"ce": 1.0, "planning": 0.0}, "nothing to balance"),
        ({"ce": 0.3, "planning": 0.2}, "min_ce_weight"),
    ],
)
def test_dynamic_weights_that_cannot_work_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weighting_for("dynamic", weights)


def test_a_gradient_without_a_loss_is_refused() -> None:
    weighting = DynamicWeights({"ce": 1.0, "planning": 1.0}, DynamicSettings())
    with pytest.raises(TrainingError, match="planning"):
        weighting.observe({"ce": 1.0, "planning": 1.0}, {"ce": 1.0})
