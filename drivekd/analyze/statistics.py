"""What is measured of one layer on one batch: tensors in, one value or vector for each sample out; and their sums.

B samples, S positions, D width, R text rows, V vision columns, L layers, W width of a vector, M answer tokens, C words
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from drivekd.tiling import Tiling

POOLED_GRID = 16  # an image's vision tokens are pooled to 16 x 16, InternVL3's own grid: other grids then have the same length
NUM_BINS = 10  # parts of an answer, by position


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where mask [B, S] is true. values [B, S] or [B, S, D] -> [B] or [B, D], fp32.

    No matrix product: under autocast it would be one in bf16.
    """
    weights = mask.float() / mask.sum(1, keepdim=True)
    return (values.float() * (weights if values.ndim == 2 else weights[..., None])).sum(1)


def adjacent_cosine(before: Tensor, after: Tensor, tokens: Tensor) -> Tensor:
    """Cosine between what a layer gets and what it gives, mean over a sample's tokens, [B]. before, after [B, S, D]."""
    return masked_mean(F.cosine_similarity(before.float(), after.float(), dim=-1), tokens)


def vision_text_cosine(hidden: Tensor, vision: Tensor, text: Tensor) -> Tensor:
    """Cosine between the mean state of a sample's vision tokens and that of its text tokens, [B]. hidden [B, S, D]."""
    return F.cosine_similarity(masked_mean(hidden, vision), masked_mean(hidden, text), dim=-1)


def attention_vectors(
    rows: Tensor,
    row_mask: Tensor,
    num_images: Sequence[int],
    token_grid: tuple[int, int],
    tiling: Tiling = Tiling(),
) -> Tensor:
    """Where a sample's text looks in its images, [B, 256].

    The mean of the text rows, cut into images, each pooled to 16 x 16 by adaptive averages; then the mean over the images, so
    that one camera and six give vectors of one length. token_grid (rows, columns): of a tile; tiling: an image's tiles are put
    together again, and its thumbnail counts as much as they do. rows [B, R, V]: attention of text rows (padding where
    row_mask [B, R] is false) to vision columns, a sample's own columns first.
    """
    means = masked_mean(rows, row_mask)  # [B, V]
    height, width = token_grid
    pooled = []
    for mean, count in zip(means, num_images, strict=True):
        tiles = mean[: count * tiling.num_tiles * height * width].view(count, tiling.num_tiles, height, width)
        views = [_whole_pictures(tiles, tiling), *([tiles[:, -1:]] if tiling.thumbnail else [])]  # [count, 1, h, w] each
        pooled.append(torch.stack([F.adaptive_avg_pool2d(view, POOLED_GRID) for view in views]).mean((0, 1)).flatten())
    return torch.stack(pooled)


def _whole_pictures(tiles: Tensor, tiling: Tiling) -> Tensor:
    """Tiles [count, tiles, h, w], row by row -> [count, 1, rows * h, columns * w]; the thumbnail is left out."""
    count, _, height, width = tiles.shape
    grid = tiles[:, : tiling.rows * tiling.columns].view(count, tiling.rows, tiling.columns, height, width)
    return grid.transpose(2, 3).reshape(count, 1, tiling.rows * height, tiling.columns * width)


class PairwiseCosine:
    """The mean cosine between the vectors of different samples, layer by layer, from the running sum of unit vectors.

    Over all ordered pairs of n unit vectors u: Σ_{i≠j} <u_i, u_j> = |Σ u|² - n, hence the mean is (|Σ u|² - n) / (n (n - 1)).
    """

    def __init__(self) -> None:
        self.count = 0
        self._total: Tensor | None = None  # [L, W] float64: |Σ u|² - n cancels where vectors differ

    def add(self, vectors: Tensor) -> None:
        """vectors [B, L, W]: one for each sample and layer."""
        units = F.normalize(vectors.double(), dim=-1).sum(0).cpu()
        self._total = units if self._total is None else self._total + units
        self.count += len(vectors)

    def mean(self) -> tuple[float, ...]:
        """One value a layer; empty for fewer than two vectors, which have no pair."""
        n = self.count
        if self._total is None or n < 2:
            return ()
        return tuple(((self._total.square().sum(-1) - n) / (n * (n - 1))).tolist())


def label_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the right token is ahead of the best wrong one, [M, 2]: in logits, and in probability (-1 to 1).

    logits [M, C], labels [M].
    """
    both = torch.stack([logits.float(), logits.float().softmax(-1)], 1)  # [M, 2, C]
    index = labels[:, None, None].expand(-1, 2, 1)
    right = both.gather(2, index).squeeze(2)
    return right - both.scatter(2, index, -torch.inf).amax(2)


def answer_bins(answer: Tensor) -> Tensor:
    """The bin of each answer token, [M]: floor(10 k / K) for token k of a sample's K. answer [B, S] bool."""
    order = answer.cumsum(1) - 1
    bins = order * NUM_BINS // answer.sum(1, keepdim=True).clamp(min=1)
    return bins[answer]
