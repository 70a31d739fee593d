"""The losses of Drive-KD (arXiv 2601.21288; docs/method.md, "Signals"). Pure: tensors in, tensors out.

The ablations' losses are here too: cosine instead of MSE, KL on logits and hidden states instead of attention.

B samples, S positions, Q rows (queries), K columns (keys), M supervised tokens, V vocabulary, D width; maps are head-mean
attention Ā
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_per_sample(logits: Tensor, targets: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """Cross-entropy, mean over each sample's supervised tokens.

    logits [M, V] and targets [M] of the M supervised tokens of a batch; sample [M]: which sample each belongs to. Returns
    [num_samples]; 0 for a sample without supervised tokens.
    """
    return _mean_per_sample(F.cross_entropy(_wide(logits), targets, reduction="none"), sample, num_samples)


def logits_kl_per_sample(student: Tensor, teacher: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """KL(teacher ‖ student) of the next token, mean over each sample's supervised tokens; no temperature.

    student, teacher [M, V]: logits over the same words; sample [M]: which sample each belongs to. Returns [num_samples]; 0 for a
    sample without supervised tokens. Raises ValueError when the vocabularies differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"logits must be over the same words: student {list(student.shape)}, teacher {list(teacher.shape)}")
    ours, theirs = _wide(student).log_softmax(-1), _wide(teacher).log_softmax(-1)  # [M, V]
    return _mean_per_sample((theirs.exp() * (theirs - ours)).sum(-1), sample, num_samples)


def text_to_vision_mse_per_sample(student: Tensor, teacher: Tensor, pair_mask: Tensor) -> Tensor:
    """Σ M (s - t)² / max(1, Σ M) for each sample. student, teacher [B, Q, K]; pair_mask [B, Q, K] bool. Returns [B]."""
    squared = (student - teacher).square() * pair_mask
    return squared.sum((1, 2)) / pair_mask.sum((1, 2)).clamp(min=1)


def text_to_vision_mse(student: Tensor, teacher: Tensor, pair_mask: Tensor) -> Tensor:
    """L_p and its twin at the penultimate layer: the mean over B of `text_to_vision_mse_per_sample`."""
    return text_to_vision_mse_per_sample(student, teacher, pair_mask).mean()


def full_map_mse_per_sample(student: Tensor, teacher: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Mean of (s - t)² over each sample's own length², the zero upper triangle included.

    student, teacher [B, S, S]; token_mask [B, S] bool, true on the sample's own tokens (None = all). Returns [B].
    """
    squared = (student - teacher).square()
    if token_mask is None:
        return squared.mean((1, 2))
    own = token_mask[:, :, None] & token_mask[:, None, :]
    return (squared * own).sum((1, 2)) / own.sum((1, 2)).clamp(min=1)


def full_map_mse(student: Tensor, teacher: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """One layer's part of L_r: the mean over B of `full_map_mse_per_sample`."""
    return full_map_mse_per_sample(student, teacher, token_mask).mean()


def _mean_per_sample(losses: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """losses [M] of the samples [M] -> [num_samples]; 0 for a sample that has none."""
    total = losses.new_zeros(num_samples).index_add(0, sample, losses)
    count = losses.new_zeros(num_samples).index_add(0, sample, torch.ones_like(losses))
    return total / count.clamp(min=1)


def _wide(x: Tensor) -> Tensor:
    """fp32 at least: sums over 150k words or S² pairs lose too much in bf16."""
    return x if x.dtype == torch.float64 else x.float()
