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
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .form import WeightForm, in_blocks, rounded, spread, stored

# Values at once: 1 MB each time on a CPU. A GPU wants few calls.
CHUNK_VALUES: Final = {"cpu": 1 << 18, "cuda": 1 << 25}


@dataclass(frozen=True)
class Known:
    """What forward passes have in common while weight and scales stay as they are.

    weight: the rounded one [N, K], in the dtype that is multiplied in; scales [N, ceil(K / B)]: of `trained_scales`.
    """

    weight: Tensor
    scales: Tensor


@torch.no_grad()
def known(weight: Tensor, log_scales: Tensor, form: WeightForm, dtype: torch.dtype = torch.float32) -> Known:
    """As `straight_through` takes it again and again. dtype: of the result."""
    scales = trained_scales(log_scales)
    return Known(computed_weight(weight, scales, form).to(dtype), scales)


def straight_through(weight: Tensor, log_scales: Tensor, form: WeightForm, before: Known | None = None) -> Tensor:
    """float32 weight [N, K] and log_scales [N, ceil(K / B)] -> the weight [N, K] that the bundle will compute with.

    before: what `known` gave for these very values; its weight is returned, and nothing is rounded again.
    """
    before = known(weight, log_scales, form) if before is None else before
    result: Tensor = _StraightThrough.apply(weight, log_scales, before, form)  # type: ignore[no-untyped-call]
    return result


def trained_scales(log_scales: Tensor) -> Tensor:
    """The scales that `straight_through` computes with, and that an export takes."""
    return stored(log_scales.exp())


@torch.no_grad()
def computed_weight(weight: Tensor, scales: Tensor, form: WeightForm) -> Tensor:
    """float32 weight [N, K] and its scales [N, ceil(K / B)] -> `Quantized(...).dequantized()` of its rounded values."""
    if weight.numel() <= _at_once(weight):
        return rounded(weight, scales, form) * spread(scales, form.block, weight.shape[1])
    result = torch.empty_like(weight)
    for rows in _chunks(weight):
        result[rows] = rounded(weight[rows], scales[rows], form) * spread(scales[rows], form.block, weight.shape[1])
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_scales: Tensor, before: Known, form: WeightForm) -> Tensor:
        ctx.save_for_backward(weight, before.scales)
        ctx.form = form
        return before.weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scales = ctx.saved_tensors
        if weight.numel() <= _at_once(weight):  # a small model's step is calls, not sums
            return *_gradients(weight, scales, grad, ctx.form), None, None
        by_weight, by_scale = torch.empty_like(weight), torch.empty_like(scales)
        for rows in _chunks(weight):
            by_weight[rows], by_scale[rows] = _gradients(weight[rows], scales[rows], grad[rows], ctx.form)
        return by_weight, by_scale, None, None


def _gradients(weight: Tensor, scales: Tensor, grad: Tensor, form: WeightForm) -> tuple[Tensor, Tensor]:
    """By the weight, and by the logarithms of the scales."""
    ratio = weight / spread(scales, form.block, weight.shape[1])
    values = ratio.round().clamp_(form.low, form.high)
    # 1 where |values - ratio| < 1, else 0; in floats, since comparing and choosing take four times as long on a CPU
    inside = torch.rsub((values - ratio).abs_(), 1).ceil_().clamp_(min=0)
    by_weight = grad * inside
    slope = values.sub_(inside.mul_(ratio))
    by_scale = in_blocks(slope.mul_(grad), form.block).sum(2)
    return by_weight, by_scale.mul_(scales)  # d/d log s = s d/ds


def _chunks(weight: Tensor) -> Iterator[slice]:
    """Rows that are taken at once."""
    step = max(1, _at_once(weight) // weight.shape[1])
    yield from (slice(start, start + step) for start in range(0, len(weight), step))


def _at_once(weight: Tensor) -> int:
    return CHUNK_VALUES.get(weight.device.type, CHUNK_VALUES["cuda"])
