"""The raw gradients of a step as rows of one buffer, their Gram matrix, and their weighted sum.

N rows (one objective each), P trainable scalars
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GRAM_CHUNK = 1 << 22  # scalars per float64 block: 32 MB a row


class GradientRows:
    """N gradients over the same parameters, accumulated in fp32 over micro-batches."""

    def __init__(self, parameters: Sequence[nn.Parameter], num_rows: int) -> None:
        self._parameters = list(parameters)
        size = sum(parameter.numel() for parameter in self._parameters)
        self._rows = torch.zeros(num_rows, size, dtype=torch.float32, device=self._parameters[0].device)  # [N, P]

    def zero(self) -> None:
        self._rows.zero_()

    def add(self, row: int, loss: Tensor, *, retain_graph: bool) -> None:
        """Add the gradient of a scalar loss to one row. Parameters that the loss does not reach cost nothing."""
        gradients = torch.autograd.grad(loss, self._parameters, retain_graph=retain_graph, allow_unused=True)
        start = 0
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            end = start + parameter.numel()
            if gradient is not None:
                self._rows[row, start:end] += gradient.reshape(-1)
            start = end

    def gram(self) -> Tensor:
        """All dot products, [N, N] float64: fp32 sums lose nine digits on the way (METHOD section 3)."""
        num_rows, size = self._rows.shape
        gram = torch.zeros(num_rows, num_rows, dtype=torch.float64, device=self._rows.device)
        for start in range(0, size, GRAM_CHUNK):
            block = self._rows[:, start : start + GRAM_CHUNK].double()
            gram += block @ block.T
        return gram

    def write_update(self, coefficients: Tensor) -> None:
        """Set every parameter's .grad to the weighted sum of the rows; coefficients [N]."""
        update = coefficients.to(self._rows) @ self._rows  # [P]
        start = 0
        for parameter in self._parameters:
            end = start + parameter.numel()
            parameter.grad = update[start:end].view_as(parameter)
            start = end
