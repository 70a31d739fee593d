"""Training through rounding: forward computes with the weights that a bundle will have, gradients pass straight through.

    w' = s clamp(round(w / s), low, high)
    dw'/dw = 1 within low - 1 < w / s < high + 1, else 0                       (Bengio et al. 2013, arXiv 1308.3432)
    dw'/ds = clamp(round(w / s), low, high) - w / s within, else low or high   (LSQ: Esser et al. 2020, arXiv 1902.08153, eq. 3)

A step further than LSQ's range: the largest weight of a block begins half a step beyond it, and must be able to move.

A scale is learned by its logarithm: a step of Adam is then a share of the scale, whatever its size, and it stays positive. It is
rounded as `stored` rounds it, straight through as well.

Rows are taken a few at a time: what comes and goes on the way to the result then stays in a processor's cache, and a head of 150k
rows needs no room for five more of itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .form import WeightForm, in_blocks, rounded, spread, stored

# Values at once: 1 MB each time on a CPU. A GPU wants few calls.
CHUNK_VALUES: Final = {"cpu": 1 << 18, "cuda": 1 << 25}


def straight_through(weight: Tensor, log_scales: Tensor, form: WeightForm, known: Tensor | None = None) -> Tensor:
    """float32 weight [N, K] and log_scales [N, ceil(K / B)] -> the weight [N, K] that the bundle will compute with.

    known: the result, where it has been computed before (`computed_weight`), in any dtype; it is returned and not made again.
    """
    result: Tensor = _StraightThrough.apply(weight, log_scales, form, known)  # type: ignore[no-untyped-call]
    return result


def trained_scales(log_scales: Tensor) -> Tensor:
    """The scales that `straight_through` computes with, and that an export takes."""
    return stored(log_scales.exp())


@torch.no_grad()
def computed_weight(weight: Tensor, scales: Tensor, form: WeightForm) -> Tensor:
    """float32 weight [N, K] and its scales [N, ceil(K / B)] -> `Quantized(...).dequantized()` of its rounded values."""
    result = torch.empty_like(weight)
    for rows in _chunks(weight):
        result[rows] = rounded(weight[rows], scales[rows], form) * spread(scales[rows], form.block, weight.shape[1])
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_scales: Tensor, form: WeightForm, known: Tensor | None) -> Tensor:
        scales = trained_scales(log_scales)
        ctx.save_for_backward(weight, scales)
        ctx.form = form
        return computed_weight(weight, scales, form) if known is None else known.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scales = ctx.saved_tensors
        form: WeightForm = ctx.form
        by_weight, by_scale = torch.empty_like(weight), torch.empty_like(scales)
        for rows in _chunks(weight):
            ratio = weight[rows] / spread(scales[rows], form.block, weight.shape[1])
            values = ratio.round().clamp_(form.low, form.high)
            # 1 where |values - ratio| < 1, else 0; in floats, since comparing and choosing take four times as long on a CPU
            inside = (values - ratio).abs_().neg_().add_(1).ceil_().clamp_(0, 1)
            torch.mul(grad[rows], inside, out=by_weight[rows])
            slope = values.sub_(inside.mul_(ratio))
            by_scale[rows] = in_blocks(slope.mul_(grad[rows]), form.block).sum(2)
        return by_weight, by_scale.mul_(scales), None, None  # d/d log s = s d/ds


def _chunks(weight: Tensor) -> Iterator[slice]:
    """Rows that are taken at once."""
    step = max(1, CHUNK_VALUES.get(weight.device.type, CHUNK_VALUES["cuda"]) // weight.shape[1])
    yield from (slice(start, start + step) for start in range(0, len(weight), step))
