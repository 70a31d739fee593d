"""Training through rounding: forward computes with the weights that a bundle will have, gradients pass straight through.

    w' = s clamp(round(w / s), low, high)
    dw'/dw = 1 within low - 1 < w / s < high + 1, else 0                       (Bengio et al. 2013, arXiv 1308.3432)
    dw'/ds = clamp(round(w / s), low, high) - w / s within, else low or high   (LSQ: Esser et al. 2020, arXiv 1902.08153, eq. 3)

A step further than LSQ's range: the largest weight of a block begins half a step beyond it, and must be able to move.

A scale is learned by its logarithm: a step of Adam is then a share of the scale, whatever its size, and it stays positive. It is
rounded as `stored` rounds it, straight through as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .form import WeightForm, in_blocks, rounded, spread, stored


def straight_through(weight: Tensor, log_scales: Tensor, form: WeightForm) -> Tensor:
    """float32 weight [N, K] and log_scales [N, ceil(K / B)] -> the weight [N, K] that the bundle will compute with."""
    result: Tensor = _StraightThrough.apply(weight, log_scales, form)  # type: ignore[no-untyped-call]
    return result


def trained_scales(log_scales: Tensor) -> Tensor:
    """The scales that `straight_through` computes with, and that an export takes."""
    return stored(log_scales.exp())


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_scales: Tensor, form: WeightForm) -> Tensor:
        scales = trained_scales(log_scales)
        ctx.save_for_backward(weight, scales)
        ctx.form = form
        return rounded(weight, scales, form) * spread(scales, form.block, weight.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scales = ctx.saved_tensors
        form: WeightForm = ctx.form
        ratio = weight / spread(scales, form.block, weight.shape[1])
        values = ratio.round().clamp_(form.low, form.high)
        inside = (ratio > form.low - 1) & (ratio < form.high + 1)
        slope = torch.where(inside, values - ratio, values)
        by_scale = in_blocks(grad * slope, form.block).sum(2) * scales  # d/d log s = s d/ds
        return grad * inside, by_scale, None
