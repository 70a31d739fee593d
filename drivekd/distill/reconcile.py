"""From the Gram matrix of a step's raw gradients to the coefficients of its update: weights, then AGP or the plain sum.

    raw Gram [N, N], losses -> weights by term -> weighted Gram -> projection -> coefficients [N], record for metrics.jsonl

N rows of raw gradients. A row is CE's (one, or one for each capability) or a signal's; a term is "ce" or a capability
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from drivekd.distill.projection import Projection, project
from drivekd.distill.weighting import CE, RelativeWeights, TermState, Weighting
from drivekd.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class ReconcileSettings:
    """The projection section of a run's configuration.

    unit: step projects the gradients accumulated over an optimizer step, micro_batch each micro-batch's by themselves (as
    released). anchor_multiplicity speaks of an anchor that several capabilities share; under anchor "own" none is shared and
    CE counts exactly once, whatever it says. Raises ConfigError when anchor "own" meets single micro-batches.
    """

    method: Literal["agp", "sum"] = "agp"
    unit: Literal["step", "micro_batch"] = "step"
    anchor: Literal["shared", "own"] = "shared"
    anchor_multiplicity: Literal["per_capability", "once"] = "per_capability"
    stages: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.unit == "micro_batch" and self.anchor == "own" and self.method == "agp":
            raise ConfigError(
                'projection.anchor = "own" compares the capabilities of a step, but projection.unit = "micro_batch" shows one at '
                'a time; use projection.unit = "step", or anchor = "shared"'
            )


@dataclass(frozen=True)
class ReconcileRecord:
    """What was done; `metrics` makes it a part of a metrics.jsonl record.

    weight: by term, as used. gradient_norm: of the raw rows. conflict_cosine: of each capability with a gradient, with its
    anchor, before projection. ce_share: CE's part of the update along the update, <u_ce, u> / ‖u‖²; the signals have the rest.
    capabilities: how many had a gradient. units: how many projections this record speaks of.
    """

    weight: dict[str, float]
    gradient_norm: dict[str, float]
    conflict_cosine: dict[str, float]
    stage_1_fired: int
    stage_2_fired: int
    ce_share: float
    capabilities: int
    units: int = 1

    def metrics(self) -> dict[str, object]:
        return {
            "weight": self.weight,
            "gradient_norm": self.gradient_norm,
            "conflict_cosine": self.conflict_cosine,
            "stage_1_fired": self.stage_1_fired,
            "stage_2_fired": self.stage_2_fired,
            "ce_share": self.ce_share,
            "projected_capabilities": self.capabilities / self.units,
        }


class Reconciler:
    """Coefficients for each projected unit of a run.

    names[i] says what row i is; anchors: capability -> its CE row; followers: capability -> its signal's row. The order in which
    stage 2 visits the capabilities is a function of (seed, step, micro-batch): resuming repeats it, and all ranks agree.
    """

    def __init__(
        self,
        names: Sequence[str],
        anchors: Mapping[str, int],
        followers: Mapping[str, int],
        weighting: Weighting,
        settings: ReconcileSettings,
        *,
        seed: int,
    ) -> None:
        self._names = tuple(names)
        self._anchor_rows = sorted(set(anchors.values()))
        self._followers = dict(followers)
        self._pairs = [(anchors[name], row) for name, row in followers.items()]
        self._weighting = weighting
        self._settings = settings
        self._seed = seed

    def __call__(
        self, gram: Tensor, losses: Mapping[str, float], *, step: int, micro_batch: int | None = None
    ) -> tuple[Tensor, ReconcileRecord]:
        """Coefficients [N] float64 of the raw rows (weights included), and the record; the update is coefficients @ rows.

        gram [N, N] float64: dot products of the raw gradients, over all ranks. losses: each row's mean over its own samples, by
        row name, over all ranks; rows without samples are missing. step: optimizer steps done before this one. micro_batch:
        its index in the step, exactly when settings.unit is micro_batch. Raises TrainingError when a gradient is not finite.
        """
        assert (micro_batch is not None) == (self._settings.unit == "micro_batch")
        norms = self._norms(gram, step)
        term_norms = self._term_norms(gram, norms)
        self._check_relative(term_norms, step)
        weights = self._weighting.weights(term_norms)
        scales = self._scales(weights)
        weighted = gram * scales[:, None] * scales[None, :]
        projection = self._project(weighted, step, micro_batch)
        self._weighting.observe(term_norms, self._term_losses(losses))
        return projection.coefficients * scales, self._record(weighted, norms, weights, projection)

    def state_dict(self) -> TermState:
        """JSON: the dynamic weights; empty for the others."""
        return self._weighting.state_dict()

    def load_state_dict(self, state: TermState) -> None:
        """Go on from what `state_dict` gave. Raises CheckpointError when it is of other terms or another kind of weights."""
        self._weighting.load_state_dict(state)

    def _norms(self, gram: Tensor, step: int) -> list[float]:
        norms: list[float] = gram.diagonal().sqrt().tolist()
        for name, norm in zip(self._names, norms, strict=True):
            if not math.isfinite(norm):
                raise TrainingError(
                    f"step {step + 1}: the gradient of the loss term {name!r} has the norm {norm}; training stopped before the "
                    "update. Lower optimizer.learning_rate, or look at the last records of metrics.jsonl"
                )
        return norms

    def _term_norms(self, gram: Tensor, norms: Sequence[float]) -> dict[str, float]:
        """CE's rows are parts of one gradient: the norm of their sum."""
        ce = gram[self._anchor_rows][:, self._anchor_rows].sum().clamp(min=0).sqrt()
        return {CE: float(ce)} | {name: norms[row] for name, row in self._followers.items()}

    def _term_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        """CE's loss is the mean over its rows that have samples."""
        ce = [losses[self._names[row]] for row in self._anchor_rows if self._names[row] in losses]
        signals = {name: losses[self._names[row]] for name, row in self._followers.items() if self._names[row] in losses}
        return ({CE: math.fsum(ce) / len(ce)} if ce else {}) | signals

    def _check_relative(self, term_norms: Mapping[str, float], step: int) -> None:
        if isinstance(self._weighting, RelativeWeights) and term_norms[CE] == 0 and any(term_norms.values()):
            raise TrainingError(
                f"step {step + 1}: signals.weighting = relative measures the signals by CE's gradient, and here there is none "
                "(no labelled sample in the projected unit). Use projection.unit = step, or signals.weighting = static"
            )

    def _scales(self, weights: Mapping[str, float]) -> Tensor:
        scales = torch.full((len(self._names),), weights[CE], dtype=torch.float64)
        for name, row in self._followers.items():
            scales[row] = weights[name]
        return scales

    def _project(self, gram: Tensor, step: int, micro_batch: int | None) -> Projection:
        settings, pairs = self._settings, self._pairs
        order = range(1, len(pairs) + 1)
        if settings.method == "sum" or not pairs:
            cosines = project(gram, order, pairs=pairs).cosines if pairs else ()
            return Projection(torch.ones(len(self._names), dtype=torch.float64), cosines, 0, 0)
        source = [self._seed, 2, step] if micro_batch is None else [self._seed, 2, step, micro_batch]
        order = np.random.default_rng(source).permutation(order).tolist()
        multiplicity = settings.anchor_multiplicity
        projection = project(gram, order, pairs=pairs, anchor_multiplicity=multiplicity, stages=settings.stages)
        return self._keep_unpaired_anchors(projection)

    def _keep_unpaired_anchors(self, projection: Projection) -> Projection:
        """CE of a capability that has no teacher takes part as it is."""
        for anchor in set(self._anchor_rows) - {anchor for anchor, _ in self._pairs}:
            projection.coefficients[anchor] += 1.0
        return projection

    def _record(
        self, weighted: Tensor, norms: Sequence[float], weights: dict[str, float], projection: Projection
    ) -> ReconcileRecord:
        cosines = zip(self._followers.items(), projection.cosines, strict=True)
        active = {name: cosine for (name, row), cosine in cosines if weighted[row, row] > 0}
        return ReconcileRecord(
            weight=weights,
            gradient_norm={name: norm for name, norm in zip(self._names, norms, strict=True) if norm > 0},
            conflict_cosine=active,
            stage_1_fired=projection.stage_1_fired,
            stage_2_fired=projection.stage_2_fired,
            ce_share=_share(weighted, projection.coefficients, self._anchor_rows),
            capabilities=len(active),
        )


def merge_records(records: Sequence[ReconcileRecord]) -> ReconcileRecord:
    """One record of a step's micro-batches: counts add up, the rest is the mean over the micro-batches that have the value."""
    return ReconcileRecord(
        weight=_means([record.weight for record in records]),
        gradient_norm=_means([record.gradient_norm for record in records]),
        conflict_cosine=_means([record.conflict_cosine for record in records]),
        stage_1_fired=sum(record.stage_1_fired for record in records),
        stage_2_fired=sum(record.stage_2_fired for record in records),
        ce_share=math.fsum(record.ce_share for record in records) / len(records),
        capabilities=sum(record.capabilities for record in records),
        units=sum(record.units for record in records),
    )


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for value in values for name in value)
    return {name: math.fsum(found := [value[name] for value in values if name in value]) / len(found) for name in names}


def _share(gram: Tensor, coefficients: Tensor, rows: Sequence[int]) -> float:
    """<Σ_rows x_n g_n, u> / ‖u‖² of the update u = Σ x_n g_n; 0 for an update of 0."""
    along = coefficients * (gram @ coefficients)  # [N]: <x_n g_n, u>
    total = float(along.sum())
    return float(along[list(rows)].sum()) / total if total > 0 else 0.0
