"""Which gradient rows a step has, and the losses of one micro-batch by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from drivekd.config import RunConfig
from drivekd.data.batch import IGNORED_LABEL, Batch
from drivekd.data.sample import CAPABILITIES, Capability, Sample
from drivekd.distill.losses import cross_entropy_per_sample
from drivekd.distill.projection import Pair
from drivekd.distill.signals import signal_loss
from drivekd.distill.teachers import Teachers
from drivekd.models.probe import capture_attention

RELEASED_DIAGONAL, RELEASED_ELSEWHERE = 0.8, 0.1  # the released mixing matrix (METHOD section 2)


@dataclass(frozen=True)
class Rows:
    """names[i] says what row i is; anchors: capability -> CE row; followers: capability -> signal row."""

    names: tuple[str, ...]
    anchors: dict[Capability, int]
    followers: dict[Capability, int]

    @property
    def pairs(self) -> list[Pair]:
        return [(self.anchors[name], row) for name, row in self.followers.items()]


def rows_for(config: RunConfig) -> Rows:
    """One shared CE row, or one CE row for each capability, then one row for each signal."""
    capabilities = tuple(config.teachers.paths())
    own = config.projection.anchor == "own" and bool(capabilities)
    names = [f"ce_{name}" for name in CAPABILITIES] if own else ["ce"]
    anchors = {name: index if own else 0 for index, name in enumerate(CAPABILITIES)}
    followers = {name: len(names) + index for index, name in enumerate(capabilities)}
    return Rows((*names, *capabilities), anchors, followers)


def row_shares(config: RunConfig, rows: Rows, samples: Sequence[Sample]) -> dict[str, float]:
    """What part of a step each row's loss is taken over; the summed loss divided by it is the mean over the row's own samples."""
    labelled = [sample.capability for sample in samples if sample.answer is not None]
    mixing = mixing_matrix(config.signals.mixing)
    shares = dict.fromkeys(rows.names, 0.0)
    for name in labelled:
        shares[rows.names[rows.anchors[name]]] += 1 / len(labelled)
    for name, row in rows.followers.items():
        column = mixing[:, CAPABILITIES.index(name)]
        shares[rows.names[row]] = sum(float(column[CAPABILITIES.index(s.capability)]) for s in samples) / len(samples)
    return shares


def mixing_matrix(mixing: str) -> Tensor:
    """pi [3, 3]: row = the sample's capability, column = the teacher's."""
    if mixing == "routed":
        return torch.eye(len(CAPABILITIES))
    matrix = torch.full((len(CAPABILITIES), len(CAPABILITIES)), RELEASED_ELSEWHERE)
    return matrix.fill_diagonal_(RELEASED_DIAGONAL)


class Objectives:
    """Student and teachers on one micro-batch -> {row: scalar loss}, normalised over the whole optimizer step."""

    def __init__(
        self,
        config: RunConfig,
        rows: Rows,
        student: InternVLForConditionalGeneration,
        teachers: Teachers | None,
        compute_dtype: torch.dtype,
    ) -> None:
        self._student = student
        self._teachers = teachers
        self._rows = rows
        self._question_rows = config.signals.rows == "question"
        self._mixing = mixing_matrix(config.signals.mixing)
        self._compute_dtype = compute_dtype

    def __call__(self, batch: Batch, *, num_labelled: int, num_samples: int) -> dict[int, Tensor]:
        """num_labelled, num_samples: counts of the whole optimizer step, so that a short last micro-batch weighs rightly."""
        mixing = self._mixing.to(batch.capability.device)[batch.capability]  # [B, 3]
        wanted = self._wanted(mixing)
        layers = self._student_layers(wanted)
        core = self._student.model
        with torch.autocast(batch.input_ids.device.type, self._compute_dtype, enabled=self._compute_dtype != torch.float32):
            with capture_attention(core.language_model.layers, layers) as maps:
                hidden = core(
                    input_ids=batch.input_ids,
                    pixel_values=batch.pixel_values,
                    attention_mask=batch.attention_mask.long(),
                    use_cache=False,
                ).last_hidden_state  # [B, S, D]
            losses = self._cross_entropy(batch, hidden, num_labelled) if bool(batch.labelled.any()) else {}
        for name in wanted:
            losses[self._rows.followers[name]] = self._signal(name, batch, maps, mixing) / num_samples
        return losses

    def _wanted(self, mixing: Tensor) -> list[Capability]:
        if self._teachers is None:
            return []
        return [name for name in self._teachers.signals if bool(mixing[:, CAPABILITIES.index(name)].any())]

    def _student_layers(self, wanted: Sequence[Capability]) -> list[int]:
        if self._teachers is None:
            return []
        return sorted({layer for name in wanted for layer in self._teachers.signals[name].student_layers})

    def _cross_entropy(self, batch: Batch, hidden: Tensor, num_labelled: int) -> dict[int, Tensor]:
        """lm_head runs on the supervised positions alone: at 150k words the rest would cost more than the model."""
        targets = batch.labels[:, 1:]
        sample, position = (targets != IGNORED_LABEL).nonzero(as_tuple=True)  # [M], [M]
        logits = self._student.lm_head(hidden[sample, position])  # [M, V]
        per_sample = cross_entropy_per_sample(logits, targets[sample, position], sample, len(batch.labels))
        losses: dict[int, Tensor] = {}
        for index in sorted(set(batch.capability[batch.labelled].tolist())):
            row = self._rows.anchors[CAPABILITIES[index]]
            mine = per_sample[(batch.capability == index) & batch.labelled].sum() / num_labelled
            losses[row] = losses[row] + mine if row in losses else mine
        return losses

    def _signal(self, name: Capability, batch: Batch, maps: dict[int, Tensor], mixing: Tensor) -> Tensor:
        """Sum over samples of pi[capability, teacher] times the signal's loss. Unlabelled samples and rows="question" compare
        the prompt's rows: rows behind the answer's tokens see the answer."""
        assert self._teachers is not None
        whole = batch.labelled[:, None] & (not self._question_rows)  # [B, 1]
        row_mask = batch.attention_mask & (whole | batch.prompt_mask)
        teacher = self._teachers.attention(name, batch)
        losses = signal_loss(self._teachers.signals[name], maps, teacher, batch.vision_mask, row_mask)  # [B]
        return (mixing[:, CAPABILITIES.index(name)] * losses).sum()
