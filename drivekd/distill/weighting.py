"""How strongly each term of the loss counts: static, relative to CE's gradient, or dynamic (GradNorm-like).

Equations: docs/method.md, "Losses and weights".

A term is "ce" or a capability. Weights multiply raw gradients. One object serves a run: `weights` says what this step uses,
`observe` learns from the step for the next one; what is logged is therefore what was used.

    n a term, w_n its weight, L_n its loss, G_n = w_n ‖∇L_n‖, p_n its share of the static weights, r_n = L_n / L_n(0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from drivekd.errors import CheckpointError, ConfigError, TrainingError

CE = "ce"
TermState = dict[str, dict[str, float]]  # term -> field -> value; JSON keeps every bit of a float
_STATE_FIELDS = ("weight", "first_loss", "step", "exp_avg", "exp_avg_sq")


class Weighting(Protocol):
    """norms: raw gradient norm by term; a term without samples in this step is missing or 0. losses: mean by term."""

    def weights(self, norms: Mapping[str, float]) -> dict[str, float]:
        """The weight of every term in this step."""

    def observe(self, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Learn from the step whose weights were just used."""

    def state_dict(self) -> TermState:
        """What `load_state_dict` needs to go on bit for bit."""

    def load_state_dict(self, state: TermState) -> None:
        """Raises CheckpointError when the state is of other terms."""


@dataclass(frozen=True)
class DynamicSettings:
    """alpha: how much slow terms are favoured (0 = not). learning_rate: AdamW's, on softplus⁻¹(w). Released defaults."""

    alpha: float = 0.0
    learning_rate: float = 3e-4
    min_ce_weight: float = 0.6


def weighting_for(
    kind: Literal["static", "relative", "dynamic"], weights: Mapping[str, float], dynamic: DynamicSettings | None = None
) -> Weighting:
    """weights: the configured weight by term, "ce" included. Raises ConfigError when a dynamic run cannot keep its promises."""
    if kind == "static":
        return StaticWeights(weights)
    return RelativeWeights(weights) if kind == "relative" else DynamicWeights(weights, dynamic or DynamicSettings())


class StaticWeights:
    """The Weighting that gives the configured weights, always."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._static = dict(weights)

    def weights(self, norms: Mapping[str, float]) -> dict[str, float]:
        return dict(self._static)

    def observe(self, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        pass

    def state_dict(self) -> TermState:
        return {}

    def load_state_dict(self, state: TermState) -> None:
        if state:
            raise CheckpointError(f"the checkpoint has dynamic weights for {sorted(state)}, this run's are not dynamic")


class RelativeWeights(StaticWeights):
    """A signal's gradient gets its configured weight times ‖∇CE‖ as its length; CE keeps its own weight."""

    def weights(self, norms: Mapping[str, float]) -> dict[str, float]:
        ce_norm = norms.get(CE, 0.0)
        return {
            term: weight * ce_norm / norms[term] if term != CE and norms.get(term, 0.0) > 0 else weight
            for term, weight in self._static.items()
        }


class DynamicWeights:
    """The Weighting of GradNorm (Chen et al. 2018, arXiv 1711.02257) as Drive-KD uses it.

    The first step uses the static weights (CE lifted to its floor). After each step w = softplus(a) moves down the gradient of
    Σ |G_n - target_n|, target_n = p_n ΣG (r_n / r̄)^α held constant, by AdamW on a; then the weights are scaled to the static sum
    with w_ce >= min_ce_weight, and a follows. Terms without a gradient in a step take no part but in that scaling, and their
    moments rest. A term of static weight 0 is off. float64 throughout; softplus⁻¹ is written so that a weight of 1e6 is exact.

    With the released rate of 3e-4 a weight moves by about 3e-4 a step whatever its size: next to signal weights in the
    thousands it is w_ce that moves.
    """

    def __init__(self, weights: Mapping[str, float], settings: DynamicSettings) -> None:
        _check_floor(weights, settings.min_ce_weight)
        self._static = dict(weights)
        self._settings = settings
        self._terms = [term for term, weight in weights.items() if weight > 0]
        on = {term: weights[term] for term in self._terms}
        self._weights = with_sum_and_floor(on, self._sum(), settings.min_ce_weight)
        self._raw = {term: nn.Parameter(softplus_inverse(_scalar(self._weights[term]))) for term in self._terms}  # a
        self._optimizer = torch.optim.AdamW(self._raw.values(), lr=settings.learning_rate, weight_decay=0.0)
        self._first_losses: dict[str, float] = {}

    def _sum(self) -> float:
        return math.fsum(self._static.values())

    def weights(self, norms: Mapping[str, float]) -> dict[str, float]:
        return dict.fromkeys(self._static, 0.0) | self._weights

    def observe(self, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Raises TrainingError when a term has a gradient and no loss."""
        present = [term for term in self._terms if norms.get(term, 0.0) > 0]
        if missing := [term for term in present if term not in losses]:
            raise TrainingError(f"dynamic weights need the loss of every term with a gradient; none was given for {missing}")
        for term in present:
            self._first_losses.setdefault(term, losses[term])
        if len(present) > 1:  # one term by itself has nothing to be balanced with
            self._descend(present, norms, losses)

    def _descend(self, present: list[str], norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        static = [self._static[term] for term in present]
        rates = [_rate(losses[term], self._first_losses[term]) for term in present]
        weights = [self._weights[term] for term in present]
        gradients = gradnorm_gradient(weights, [norms[term] for term in present], static, rates, self._settings.alpha)
        for term, weight, gradient in zip(present, weights, gradients, strict=True):
            self._raw[term].grad = _scalar(gradient * -math.expm1(-weight))  # dw/da = sigmoid(a) = 1 - exp(-w)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)  # AdamW leaves alone what has no gradient
        moved = self._weights | {term: float(softplus(self._raw[term].detach())) for term in present}
        self._weights = with_sum_and_floor(moved, self._sum(), self._settings.min_ce_weight)
        for term, raw in self._raw.items():
            raw.data = softplus_inverse(_scalar(self._weights[term]))

    def state_dict(self) -> TermState:
        return {term: self._term_state(term) for term in self._terms}

    def _term_state(self, term: str) -> dict[str, float]:
        state = {"weight": self._weights[term]}
        if term in self._first_losses:
            state["first_loss"] = self._first_losses[term]
        return state | {field: float(value) for field, value in self._optimizer.state[self._raw[term]].items()}

    def load_state_dict(self, state: TermState) -> None:
        if set(state) != set(self._terms):
            raise CheckpointError(f"dynamic weights: the checkpoint has {sorted(state)}, this run {sorted(self._terms)}")
        for term, fields in state.items():
            if "weight" not in fields or not set(fields) <= set(_STATE_FIELDS):
                raise CheckpointError(f"dynamic weights: {term} has {sorted(fields)}, expected some of {list(_STATE_FIELDS)}")
        for term, fields in state.items():
            self._load_term(term, fields)

    def _load_term(self, term: str, fields: Mapping[str, float]) -> None:
        raw = self._raw[term]
        self._weights[term] = fields["weight"]
        raw.data = softplus_inverse(_scalar(fields["weight"]))
        self._first_losses.pop(term, None)
        if "first_loss" in fields:
            self._first_losses[term] = fields["first_loss"]
        self._optimizer.state.pop(raw, None)
        if "exp_avg" in fields:
            moments = {name: _scalar(fields[name]) for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[raw] = {"step": torch.tensor(fields["step"]), **moments}


def gradnorm_gradient(
    weights: list[float], norms: list[float], static: list[float], rates: list[float], alpha: float
) -> list[float]:
    """d/dw_n of Σ |w_n ‖∇L_n‖ - target_n|, target_n = p_n ΣG (r_n / r̄)^α constant; all lists over the same terms."""
    lengths = [weight * norm for weight, norm in zip(weights, norms, strict=True)]  # G_n
    total, share, mean_rate = math.fsum(lengths), math.fsum(static), math.fsum(rates) / len(rates)
    targets = [p / share * total * (rate / mean_rate) ** alpha for p, rate in zip(static, rates, strict=True)]
    return [norm * _sign(length - target) for norm, length, target in zip(norms, lengths, targets, strict=True)]


def with_sum_and_floor(weights: Mapping[str, float], total: float, min_ce_weight: float) -> dict[str, float]:
    """Scale to a sum of `total`; if that leaves CE under its floor, CE gets the floor and the others share the rest."""
    scale = total / math.fsum(weights.values())
    ce = weights[CE] * scale
    if ce >= min_ce_weight:
        return {term: weight * scale for term, weight in weights.items()}
    others = math.fsum(weight for term, weight in weights.items() if term != CE)
    rest = (total - min_ce_weight) / others
    return {term: min_ce_weight if term == CE else weight * rest for term, weight in weights.items()}


def softplus(a: Tensor) -> Tensor:
    """log(1 + exp(a)), exact everywhere; torch's own is linear from a = 20 on, 2e-9 off."""
    return torch.logaddexp(a, torch.zeros_like(a))


def softplus_inverse(w: Tensor) -> Tensor:
    """a with log(1 + exp(a)) = w, for w > 0. The textbook log(exp(w) - 1) overflows fp32 above 88."""
    return w + torch.log(-torch.expm1(-w))


def _check_floor(weights: Mapping[str, float], min_ce_weight: float) -> None:
    signals = math.fsum(weight for term, weight in weights.items() if term != CE)
    if weights.get(CE, 0.0) <= 0:
        raise ConfigError(
            "signals.ce_weight = 0 with signals.weighting = dynamic: CE is what the others are balanced with; use static"
        )
    if signals <= 0:
        raise ConfigError(
            "signals.weighting = dynamic has nothing to balance: every signal's weight is 0, or there is no teacher"
        )
    if weights[CE] + signals <= min_ce_weight:
        raise ConfigError(
            f"signals.dynamic.min_ce_weight = {min_ce_weight} leaves the signals nothing of the weights' sum "
            f"{weights[CE] + signals}; lower it, or raise signals.ce_weight or the signals' weights"
        )


def _rate(loss: float, first_loss: float) -> float:
    """r_n; a loss that began at 0 has nothing to catch up with."""
    return loss / first_loss if first_loss > 0 else 1.0


def _sign(value: float) -> float:
    return math.copysign(1.0, value) if value else 0.0


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
