"""What each capability distils, and from which layers (docs/method.md, "Signals").

perception  Ā at layer 0,        text rows x vision columns
planning    Ā at layer -2,       text rows x vision columns
reasoning   Ā at layers 0..-2,   whole map, each student layer against the mean of a group of teacher layers

Maps [B, R, C] are compared row by row, and rows are dealt out to samples: with packed frames the prefix's rows belong to every
question of the pack, an answer's rows to one. B packs, N samples, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from drivekd.config import SignalConfig
from drivekd.data.batch import PREFIX, Batch
from drivekd.errors import ConfigError
from drivekd.sample import Capability

Grouping = Literal["window", "proportional"]
LossKind = Literal["mse", "cosine", "hidden", "kl"]
Form = Literal["text_to_vision", "full_map"]
CountedRows = Literal["all", "question", "answer"]

DEFAULT_FORMS: dict[Capability, Form] = {"perception": "text_to_vision", "reasoning": "full_map", "planning": "text_to_vision"}


@dataclass(frozen=True)
class Signal:
    """student_layers[i] is compared with the uniform mean of teacher_groups[i]. Both are empty for kl, which compares logits."""

    capability: Capability
    form: Form
    loss: LossKind
    student_layers: tuple[int, ...]
    teacher_groups: tuple[tuple[int, ...], ...]

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """Every teacher layer that is needed, ascending."""
        return tuple(sorted({layer for group in self.teacher_groups for layer in group}))

    @property
    def compares_attention(self) -> bool:
        """Whether it reads attention maps; the others read hidden states or logits."""
        return self.loss in ("mse", "cosine")


def group_layers(student_layers: Sequence[int], teacher_layers: Sequence[int], scheme: Grouping = "window") -> list[list[int]]:
    """The teacher layers whose mean each student layer learns from.

    window: the released stride-1 sliding window, width g = max(1, m - k + 1), clamped at the end, for k student and m teacher
    layers. proportional: student layer i takes its share [i m / k, (i + 1) m / k) of the teacher's depth, at least one layer.
    Raises ValueError when either has none.

    The window is the released code's of Drive-KD (arXiv 2601.21288); docs/method.md, "Layer groups". By hand, for k = 2 and m =
    4: g = 4 - 2 + 1 = 3, so windows begin at 0 and 1; shares are [0, 2) and [2, 4).

        >>> group_layers(range(2), range(4))
        [[0, 1, 2], [1, 2, 3]]
        >>> group_layers(range(2), range(4), "proportional")
        [[0, 1], [2, 3]]

    A student deeper than its teacher: the window ends with layers that all copy the last one.

        >>> group_layers(range(3), range(2))
        [[0], [1], [1]]
    """
    k, m = len(student_layers), len(teacher_layers)
    if not k or not m:
        raise ValueError("group_layers needs at least one student layer and one teacher layer")
    if scheme == "window":
        width = max(1, m - k + 1)
        starts = [min(i, m - width) for i in range(k)]
        return [list(teacher_layers[start : start + width]) for start in starts]
    bounds = [(i * m // k, max(i * m // k + 1, -(-(i + 1) * m // k))) for i in range(k)]
    return [list(teacher_layers[start:end]) for start, end in bounds]


def signal_for(
    capability: Capability, config: SignalConfig, student_depth: int, teacher_depth: int, grouping: Grouping
) -> Signal:
    """The signal of one capability for a pair of models of these depths. Raises ConfigError on layers that do not exist."""
    form = config.form or DEFAULT_FORMS[capability]
    if config.loss == "kl":
        return Signal(capability, form, "kl", (), ())
    student = _layers(capability, "student", config.student_layers, student_depth)
    teacher = _layers(capability, "teacher", config.teacher_layers, teacher_depth)
    groups = group_layers(student, teacher, grouping)
    return Signal(capability, form, config.loss, tuple(student), tuple(tuple(group) for group in groups))


def _layers(capability: Capability, who: str, chosen: Sequence[int], depth: int) -> list[int]:
    defaults: dict[Capability, list[int]] = {
        "perception": [0],
        "reasoning": list(range(depth - 1)),
        "planning": [depth - 2],
    }
    layers = [layer % depth if -depth <= layer < depth else layer for layer in chosen] or defaults[capability]
    if not layers or layers == [-1]:
        raise ConfigError(f"signals.{capability}.{who}_layers: the {who}'s {depth} layers leave none before the last; name one")
    if outside := [layer for layer in layers if not 0 <= layer < depth]:
        raise ConfigError(f"signals.{capability}.{who}_layers: {outside} outside the {who}'s {depth} layers (0..{depth - 1})")
    return sorted(set(layers))


@dataclass(frozen=True)
class Places:
    """Which rows and columns of a batch's maps are compared: positions [B, R] and [B, C], and which of them are real (bool)."""

    rows: Tensor
    row_mask: Tensor
    columns: Tensor
    column_mask: Tensor


def text_to_vision_places(batch: Batch) -> Places:
    """M[b, i, j] = (row i is text) and (column j is vision); padding is neither."""
    rows, row_mask = _positions(batch.token_mask & ~batch.vision_mask)
    columns, column_mask = _positions(batch.vision_mask)
    return Places(rows, row_mask, columns, column_mask)


def full_map_places(batch: Batch) -> Places:
    """Every token against every token; what lies after a row or in another question is 0 in both models."""
    every = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand(len(batch.input_ids), -1)
    return Places(every, batch.token_mask, every, batch.token_mask)


def places_of(form: Form, batch: Batch) -> Places:
    """What a signal of this form compares in a batch."""
    return text_to_vision_places(batch) if form == "text_to_vision" else full_map_places(batch)


def _positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the true places of mask [B, S], padded at the end: ([B, R] int64, [B, R] bool)."""
    count = int(mask.sum(1).max())
    positions = (~mask).sort(dim=1, stable=True).indices[:, :count]
    return positions, mask.gather(1, positions)


def row_members(batch: Batch, places: Places, counted: CountedRows) -> Tensor:
    """Which rows count for which sample, [N, R] bool: of unlabelled samples the prompt's, whatever `counted` says."""
    segment = batch.segment.gather(1, places.rows)[batch.pack]  # [N, R]
    members = (segment == PREFIX) | (segment == batch.question[:, None])
    members &= places.row_mask[batch.pack]
    prompt = batch.prompt_mask.gather(1, places.rows)[batch.pack]
    if counted == "question":
        members &= prompt
    elif counted == "answer":
        members &= ~prompt | ~batch.labelled[:, None]
    return members


def signal_loss(
    signal: Signal, student: Iterable[Tensor], teacher: Iterable[Tensor], batch: Batch, places: Places, counted: CountedRows
) -> Tensor:
    """The signal's loss for each sample, [N]: the mean over its student layers.

    student, teacher: for each i the maps of student layer i and of its group of teacher layers at `places`, [B, R, C] each.
    """
    members = row_members(batch, places, counted)  # [N, R]
    compare = _cosine_losses if signal.loss == "cosine" else _mse_losses
    columns = _counted_columns(signal.form, batch, places, members, counted)
    pairs = zip(student, teacher, strict=True)
    return torch.stack([compare(s, t, batch.pack, members, places, columns) for s, t in pairs]).mean(0)


def _counted_columns(form: Form, batch: Batch, places: Places, members: Tensor, counted: CountedRows) -> Tensor:
    """The number of columns in each sample's denominator, [N]: vision tokens, or the length of the sample's own map."""
    if form == "text_to_vision":
        return places.column_mask.sum(1)[batch.pack]
    return members.sum(1) if counted != "answer" else row_members(batch, places, "all").sum(1)


def _mse_losses(student: Tensor, teacher: Tensor, pack: Tensor, members: Tensor, places: Places, columns: Tensor) -> Tensor:
    """Σ M (s - t)² / max(1, Σ M) for each sample."""
    errors = ((student - teacher).square() * places.column_mask[:, None]).sum(2)  # [B, R]
    return (errors[pack] * members).sum(1) / (members.sum(1) * columns).clamp(min=1)


def _cosine_losses(student: Tensor, teacher: Tensor, pack: Tensor, members: Tensor, places: Places, columns: Tensor) -> Tensor:
    """1 - cos between a sample's two maps, each as one vector. 0 for a sample without rows."""

    def total(product: Tensor) -> Tensor:
        return ((product * places.column_mask[:, None]).sum(2)[pack] * members).sum(1)  # [N]

    norms = (total(student.square()) * total(teacher.square())).clamp(min=torch.finfo(student.dtype).tiny).sqrt()
    return (1 - total(student * teacher) / norms) * members.any(1)
