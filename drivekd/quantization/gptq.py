"""Better values than the nearest: a matrix is rounded so that its outputs, on real inputs, stay where they were.

    minimise  ||W' X' - W X||²     X: the layer's inputs in the float model; X': those that the layers before, rounded, give it

1. Towards X' (after GPTAQ: Li et al. 2025, arXiv 2504.02692, section 3): in float, the weight that answers X' as W answered X is
       W* = W + W (X - X') X'ᵀ (H + λ I)⁻¹,  H = X' X'ᵀ
   the ridge λ holds it near W where the samples say little.
2. Scales: of each block the one that loses least when every weight is rounded to the nearest, its inputs' powers (the diagonal
   of H) as weights.
3. GPTQ (Frantar et al. 2023, arXiv 2210.17323, algorithm 1): one input after the other, the loudest first, is rounded for all
   outputs; what it loses is made good by those still to come.
4. Scales once more, by least squares, with the values as they are: for each output a system of as many unknowns as it has blocks.

N outputs, K inputs, B weights of a block, T tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .form import Quantized, WeightForm, block_scales, in_blocks, rounded, spread, stored

SHARES = tuple(0.70 + 0.02 * step for step in range(21))  # of the scale at which no weight of a block is cut off
DAMPING = 0.01  # of H's mean diagonal, as published
RIDGE = 0.05  # of H's mean diagonal: λ
LAZY = 64  # inputs that are rounded before the rest hears of it
FIT_LIMITS = (0.5, 2.0)  # of the scale before; beyond them the least squares' system says nothing
FIT_DAMPING = 1e-3


@dataclass
class InputStatistics:
    """What a layer's inputs are over all tokens: sums of products, added up sample by sample.

    hessian: X' X'ᵀ / T [K, K]; shift: (X - X') X'ᵀ / T [K, K], None where X' is X.
    """

    hessian: Tensor
    shift: Tensor | None
    tokens: int

    @classmethod
    def none(cls, inputs: int, *, shifted: bool) -> InputStatistics:
        """Of no token yet."""
        return cls(torch.zeros(inputs, inputs), torch.zeros(inputs, inputs) if shifted else None, 0)

    def add(self, given: Tensor, exact: Tensor) -> None:
        """given: X' [T, K], float32; exact: X [T, K]."""
        share = len(given) / (self.tokens + len(given))
        self.hessian.lerp_(given.T @ given / len(given), share)
        if self.shift is not None:
            self.shift.lerp_((exact - given).T @ given / len(given), share)
        self.tokens += len(given)


def quantized_by_data(weight: Tensor, form: WeightForm, inputs: InputStatistics, *, half: bool = False) -> Quantized:
    """The matrix [N, K], finite, in the form; half: as in form.stored. Where no token came by, it is rounded to the nearest."""
    inputs_power = inputs.hessian.diagonal()
    if not bool((inputs_power > 0).any()):
        scales = stored(block_scales(weight, form), half=half)
        return Quantized(rounded(weight, scales, form), scales, form)
    if inputs.shift is not None:
        weight = _towards(weight, inputs.hessian, inputs.shift)
    scales = stored(searched_scales(weight, form, inputs_power), half=half)
    values = gptq(weight, scales, form, inputs.hessian)
    scales = stored(fitted_scales(weight, values, scales, form, inputs.hessian), half=half)
    return Quantized(values, scales, form)


def _towards(weight: Tensor, hessian: Tensor, shift: Tensor) -> Tensor:
    """W* of step 1."""
    factor = torch.linalg.cholesky(_damped(hessian, RIDGE))
    return weight + torch.cholesky_solve((weight @ shift).T, factor).T


def searched_scales(weight: Tensor, form: WeightForm, power: Tensor) -> Tensor:
    """[N, K] -> scales [N, ceil(K / B)] of step 2. power [K]: of the inputs, >= 0."""
    inputs, widest = weight.shape[1], block_scales(weight, form)
    best, least = widest, torch.full_like(widest, torch.inf)
    for share in SHARES:
        scales = widest * share
        wide = spread(scales, form.block, inputs)
        error = (weight / wide).round_().clamp_(form.low, form.high).mul_(wide).sub_(weight).square_().mul_(power)
        loss = in_blocks(error, form.block).sum(2)
        better = loss < least
        best, least = torch.where(better, scales, best), torch.where(better, loss, least)
    return best


def gptq(weight: Tensor, scales: Tensor, form: WeightForm, hessian: Tensor) -> Tensor:
    """Values int8 [N, K] of step 3, for scales that stay as they are."""
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(_damped(hessian, DAMPING)[order][:, order])  # upper, of H⁻¹
    rest = weight.T[order].contiguous()  # [K, N]: an input's weights lie together
    steps = spread(scales, form.block, weight.shape[1]).T[order].contiguous()
    values = torch.empty_like(rest)
    for start in range(0, len(rest), LAZY):
        part = slice(start, min(start + LAZY, len(rest)))
        lost = _round_rows(rest[part], steps[part], factor[part, part], form, out=values[part])
        rest[part.stop :].addmm_(factor[part, part.stop :].T, lost, alpha=-1)
    found = torch.empty_like(values, dtype=torch.int8)
    found[order] = values.to(torch.int8)
    return found.T.contiguous()


def _round_rows(rest: Tensor, steps: Tensor, factor: Tensor, form: WeightForm, *, out: Tensor) -> Tensor:
    """A few inputs' weights [R, N] to `out`, each once it has made good what those before lost; all losses, over their pivots.

    By one thread: vectors of N numbers are not worth waking another for, which takes longer where cores are busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lost, pivots = torch.empty_like(rest), factor.diagonal().tolist()
        for row, pivot in enumerate(pivots):
            current = torch.addmv(rest[row], lost[:row].T, factor[:row, row], alpha=-1)
            value = torch.div(current, steps[row], out=out[row]).round_().clamp_(form.low, form.high)
            torch.addcmul(current, value, steps[row], value=-1, out=lost[row]).div_(pivot)
    finally:
        torch.set_num_threads(threads)
    return lost


def fitted_scales(weight: Tensor, values: Tensor, scales: Tensor, form: WeightForm, hessian: Tensor) -> Tensor:
    """Scales of step 4, by output: minimise (w - Σ_b s_b v_b) H (w - Σ_b s_b v_b)ᵀ; where that says nothing, those given."""
    damped = _damped(hessian, FIT_DAMPING)
    blocks = in_blocks(values.float(), form.block)  # [N, K / B, B]
    target = (in_blocks(weight @ damped, form.block) * blocks).sum(2)  # [N, K / B]
    system = torch.stack(
        [
            (in_blocks(blocks[:, number, : len(part)] @ part, form.block) * blocks).sum(2)
            for number, part in enumerate(torch.split(damped, form.block))
        ],
        1,
    )  # [N, K / B, K / B]
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal += 1e-6 * diagonal.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    fitted = torch.linalg.solve(system, target)
    low, high = FIT_LIMITS
    return torch.where((fitted > low * scales) & (fitted < high * scales), fitted, scales)


def _damped(hessian: Tensor, share: float) -> Tensor:
    """H with a share of its mean diagonal on the diagonal; an input that is always 0 hinders nothing."""
    damped = hessian.clone()
    damped.diagonal().add_(share * float(hessian.diagonal().mean()))
    return damped


def _inverse_factor(matrix: Tensor) -> Tensor:
    """The upper triangular U with UᵀU = matrix⁻¹."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
