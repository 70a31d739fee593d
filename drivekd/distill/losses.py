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

    Drive-KD's L_CE (docs/method.md, "Losses and weights"). By hand: two equal logits cost ln 2; logits 0 and ln 3 are the shares
    1/4 and 3/4, and the second word costs -ln 3/4 = 0.2877. The first two tokens belong to sample 0, the third to sample 1:

        >>> logits = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 3.0]]).log()
        >>> losses = cross_entropy_per_sample(logits, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
        >>> [round(loss, 4) for loss in losses.tolist()]
        [0.6931, 0.2877, 0.0]
    """
    return _mean_per_sample(F.cross_entropy(_wide(logits), targets, reduction="none"), sample, num_samples)


def logits_kl_per_sample(student: Tensor, teacher: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """KL(teacher ‖ student) of the next token, mean over each sample's supervised tokens; no temperature.

    student, teacher [M, V]: logits over the same words; sample [M]: which sample each belongs to. Returns [num_samples]; 0 for a
    sample without supervised tokens. Raises ValueError when the vocabularies differ.

    The distillation of logits (arXiv 1503.02531, section 2) at temperature 1, a row of Drive-KD's ablation. By hand, for a
    teacher's shares 1/4, 3/4 and an undecided student: 1/4 ln 1/2 + 3/4 ln 3/2 = 0.1308.

        >>> loss = logits_kl_per_sample(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]).log(), torch.tensor([0]), 1)
        >>> round(loss.item(), 4)
        0.1308
    """
    if student.shape != teacher.shape:
        raise ValueError(f"logits must be over the same words: student {list(student.shape)}, teacher {list(teacher.shape)}")
    ours, theirs = _wide(student).log_softmax(-1), _wide(teacher).log_softmax(-1)  # [M, V]
    return _mean_per_sample((theirs.exp() * (theirs - ours)).sum(-1), sample, num_samples)


def text_to_vision_mse_per_sample(student: Tensor, teacher: Tensor, pair_mask: Tensor) -> Tensor:
    """Σ M (s - t)² / max(1, Σ M) for each sample. student, teacher [B, Q, K]; pair_mask [B, Q, K] bool. Returns [B].

    L_p before its mean over b (docs/method.md, "Signals"). By hand: of two masked pairs one differs by 0.5, so 0.25 / 2; a sample
    without any masked pair costs nothing.

        >>> student, teacher = torch.zeros(2, 1, 3), torch.tensor([[[0.5, 0.0, 9.0]], [[1.0, 1.0, 1.0]]])
        >>> mask = torch.tensor([[[True, True, False]], [[False, False, False]]])
        >>> text_to_vision_mse_per_sample(student, teacher, mask).tolist()
        [0.125, 0.0]
    """
    squared = (student - teacher).square() * pair_mask
    return squared.sum((1, 2)) / pair_mask.sum((1, 2)).clamp(min=1)


def text_to_vision_mse(student: Tensor, teacher: Tensor, pair_mask: Tensor) -> Tensor:
    """L_p and its twin at the penultimate layer, a scalar: the mean over B of `text_to_vision_mse_per_sample`.

    Drive-KD (arXiv 2601.21288): L_p = mean over b of Σ M (Ā^s - Ā^t)² / max(1, Σ M), M[b, i, j] = (row i is text) and (column j
    is vision); docs/method.md, "Signals". By hand: (0.5² + 0.5²) / 2 = 0.25 for the first sample, 0 for the second.

        >>> student, teacher = torch.zeros(2, 1, 2), torch.tensor([[[0.5, 0.5]], [[0.0, 0.0]]])
        >>> text_to_vision_mse(student, teacher, torch.ones(2, 1, 2, dtype=torch.bool)).item()
        0.125
    """
    return text_to_vision_mse_per_sample(student, teacher, pair_mask).mean()


def full_map_mse_per_sample(student: Tensor, teacher: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Mean of (s - t)² over each sample's own length², the zero upper triangle included.

    student, teacher [B, S, S]; token_mask [B, S] bool, true on the sample's own tokens (None = all). Returns [B].

    L_r before its means over layers and b (docs/method.md, "Signals"). By hand: one of the map's four values differs by 1, so
    1/4; masked to the sample's one own token it is that token's pair with itself, which is equal.

        >>> student, teacher = torch.eye(2)[None], torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
        >>> full_map_mse_per_sample(student, teacher).tolist()
        [0.25]
        >>> full_map_mse_per_sample(student, teacher, torch.tensor([[True, False]])).tolist()
        [0.0]
    """
    squared = (student - teacher).square()
    if token_mask is None:
        return squared.mean((1, 2))
    own = token_mask[:, :, None] & token_mask[:, None, :]
    return (squared * own).sum((1, 2)) / own.sum((1, 2)).clamp(min=1)


def full_map_mse(student: Tensor, teacher: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """One layer's part of L_r, a scalar: the mean over B of `full_map_mse_per_sample`.

    Drive-KD (arXiv 2601.21288): L_r = mean over student layers and b of Σ_ij (Ā^s_l - T_l)² / (own length)², T_l the mean of a
    group of teacher layers (docs/method.md, "Signals" and "Layer groups"). By hand: 1/4 for the first sample, 0 for the second.

        >>> student = torch.eye(2).repeat(2, 1, 1)
        >>> teacher = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> full_map_mse(student, teacher).item()
        0.125
    """
    return full_map_mse_per_sample(student, teacher, token_mask).mean()


def _mean_per_sample(losses: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    """losses [M] of the samples [M] -> [num_samples]; 0 for a sample that has none."""
    total = losses.new_zeros(num_samples).index_add(0, sample, losses)
    count = losses.new_zeros(num_samples).index_add(0, sample, torch.ones_like(losses))
    return total / count.clamp(min=1)


def _wide(x: Tensor) -> Tensor:
    """fp32 at least: sums over 150k words or S² pairs lose too much in bf16."""
    return x if x.dtype == torch.float64 else x.float()
