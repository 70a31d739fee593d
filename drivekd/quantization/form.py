"""The form that weights have in a bundle: blocks along a linear layer's inputs, each with one positive scale.

    scale = max(max(w) / (high + 1/2), min(w) / (low - 1/2))
    value = round(w / scale) in low..high,  |w - scale value| <= scale / 2

The smallest scale for which that bound holds (quantization by data finds scales that serve better). Symmetric: TensorRT takes no
zero points, and no negative scales, which onnxruntime's own quantizer would make. Everything here is elementwise float32, so that
training, search and export come to the same bits on any machine.

N outputs, K inputs, B weights of a block; a row's last block may be shorter
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

# Of float16, in which scales are stored; TensorRT takes none that is 0.
SMALLEST_HALF: Final = 2.0**-14  # normal
LARGEST_HALF: Final = 65504.0
SMALLEST: Final = float(torch.finfo(torch.float32).tiny)
# Scales are float16 where their mean is so far above float16's smallest that the smaller ones may be lifted to it: the step of a
# block of tiny weights is then at most half of its matrix's mean.
WORTH_HALF: Final = 2 * SMALLEST_HALF


@dataclass(frozen=True)
class WeightForm:
    """bits: 4 or 8. block: inputs that share a scale."""

    bits: int
    block: int

    @property
    def low(self) -> int:
        """The smallest value."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest value."""
        return (1 << (self.bits - 1)) - 1

    def bits_per_weight(self, inputs: int, *, half_scales: bool = True) -> float:
        """Scales counted, for a layer of so many inputs."""
        return self.bits + -(-inputs // self.block) * (16 if half_scales else 32) / inputs


@dataclass(frozen=True)
class Quantized:
    """One matrix. values: int8 [N, K]; scales: float32 [N, ceil(K / B)], all > 0, numbers that `stored` gave."""

    values: Tensor
    scales: Tensor
    form: WeightForm

    def dequantized(self) -> Tensor:
        """The float32 weight [N, K] that is computed with."""
        return self.values * spread(self.scales, self.form.block, self.values.shape[1])


def quantized(weight: Tensor, form: WeightForm, *, half: bool = False) -> Quantized:
    """[N, K], finite, rounded to the nearest. half: as in `stored`."""
    scales = stored(block_scales(weight, form), half=half)
    return Quantized(rounded(weight, scales, form), scales, form)


def block_scales(weight: Tensor, form: WeightForm) -> Tensor:
    """[N, K] -> the scale of each block, [N, ceil(K / B)] > 0; of a block of zeros, too."""
    blocks = in_blocks(weight, form.block)
    scales = torch.maximum(blocks.amax(2) / (form.high + 0.5), blocks.amin(2) / (form.low - 0.5))
    return scales.clamp(min=SMALLEST)


def stored(scales: Tensor, *, half: bool = False) -> Tensor:
    """Scales > 0 of one matrix as a bundle keeps them: numbers of float16, but float32 where a matrix is all too small for that.

    half: float16 always, as graphs of float16 need them. Raises nothing: scales beyond float16 become its largest number, which
    export refuses by the weights' own size.
    """
    if half or fits_half(scales):
        return scales.clamp(SMALLEST_HALF, LARGEST_HALF).half().float()
    return scales


def fits_half(scales: Tensor) -> bool:
    """Whether a matrix's scales may be float16."""
    return float(scales.max()) <= LARGEST_HALF and float(scales.mean()) >= WORTH_HALF


def rounded(weight: Tensor, scales: Tensor, form: WeightForm) -> Tensor:
    """[N, K] by scales [N, ceil(K / B)] -> values int8 [N, K]."""
    wide = spread(scales, form.block, weight.shape[1])
    return (weight / wide).round_().clamp_(form.low, form.high).to(torch.int8)


def in_blocks(weight: Tensor, block: int) -> Tensor:
    """[N, K] -> [N, ceil(K / B), B], zeros behind K."""
    missing = -weight.shape[1] % block
    padded = F.pad(weight, (0, missing)) if missing else weight  # pad copies, also when nothing is missing
    return padded.reshape(len(weight), -1, block)


def spread(scales: Tensor, block: int, inputs: int) -> Tensor:
    """[N, ceil(K / B)] -> [N, K]: each weight's scale."""
    return scales.repeat_interleave(block, 1)[:, :inputs]
