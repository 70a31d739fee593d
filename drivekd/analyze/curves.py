"""The curves of one model on one capability's samples, and the sums from which they come.

The sums have one entry a layer, whatever the number of samples. L layers, B samples, D width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .statistics import NUM_BINS, PairwiseCosine

Curve: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Curves:
    """One value for each layer, 0-based.

    adjacent_cosine: between a layer's input and output (layer 0's input: the embeddings), mean over tokens, then samples.
    vision_text_cosine: between the mean states of vision and of text tokens behind the layer, mean over samples.
    similarity: mean cosine between the samples' text-to-vision maps. attention_dispersion: 1 minus it.
    hidden_dispersion: 1 minus the mean cosine between the samples' mean text states.
    The last three are empty where there are fewer than two samples.
    label_margin_logit, label_margin_probability: one value for each tenth of the answers; None where no answer has a token.
    """

    adjacent_cosine: Curve
    vision_text_cosine: Curve
    similarity: Curve
    attention_dispersion: Curve
    hidden_dispersion: Curve
    label_margin_logit: tuple[float | None, ...]
    label_margin_probability: tuple[float | None, ...]

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.adjacent_cosine)

    def to_json(self) -> dict[str, list[float | None]]:
        return {name: list(values) for name, values in asdict(self).items()}


class CurveSums:
    """Running sums over samples."""

    def __init__(self, depth: int) -> None:
        self._adjacent = torch.zeros(depth, dtype=torch.float64)
        self._vision_text = torch.zeros(depth, dtype=torch.float64)
        self._attention, self._hidden = PairwiseCosine(), PairwiseCosine()
        self._margins = torch.zeros(NUM_BINS, 2, dtype=torch.float64)
        self._answer_tokens = torch.zeros(NUM_BINS, dtype=torch.float64)
        self.num_samples = 0

    def add_layers(self, adjacent: Tensor, vision_text: Tensor, text_states: Tensor, attention: Tensor) -> None:
        """adjacent, vision_text [B, L]; text_states [B, L, D]; attention [B, L, 256]."""
        self._adjacent += adjacent.double().sum(0).cpu()
        self._vision_text += vision_text.double().sum(0).cpu()
        self._hidden.add(text_states)
        self._attention.add(attention)
        self.num_samples += len(adjacent)

    def add_margins(self, margins: Tensor, bins: Tensor) -> None:
        """margins [M, 2] of answer tokens, bins [M] as `answer_bins` gives them."""
        self._margins.index_add_(0, bins.cpu(), margins.double().cpu())
        self._answer_tokens += bins.cpu().bincount(minlength=NUM_BINS)

    def curves(self) -> Curves:
        """Everything so far, of at least one sample."""
        similarity, alike = self._attention.mean(), self._hidden.mean()
        return Curves(
            adjacent_cosine=tuple((self._adjacent / self.num_samples).tolist()),
            vision_text_cosine=tuple((self._vision_text / self.num_samples).tolist()),
            similarity=similarity,
            attention_dispersion=tuple(1 - value for value in similarity),
            hidden_dispersion=tuple(1 - value for value in alike),
            label_margin_logit=self._margin(0),
            label_margin_probability=self._margin(1),
        )

    def _margin(self, kind: int) -> tuple[float | None, ...]:
        pairs = zip(self._margins[:, kind].tolist(), self._answer_tokens.tolist(), strict=True)
        return tuple(total / count if count else None for total, count in pairs)
