"""Our own rows of `quantized_peers.py`: the checkpoint in fp32, and what `drivekd export` rounds its weights to, in torch.

    python -m benchmarks.export.peer_ours --work DIR --variant int4

Activations stay fp32 here; an engine may round them, too. `ours` is for any other way to compute logits: a bundle's decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .peer_row import Inputs, Logits, Size, blocks, inputs_of, print_row, scored, variant_of

WHO = "drivekd"
BLOCK = 32
# name: form, bits of the linears, bits of the head; 32 stays as it is
VARIANTS: dict[str, tuple[str, int, int]] = {
    "fp32": ("fp32", 32, 32),
    "int8": ("int8 a scale a row, head int8", 8, 8),
    "int4": ("int4 sym 32 rounded, head int4", 4, 4),
    "int4-head8": ("int4 sym 32 rounded, head int8", 4, 8),
    "int4-head32": ("int4 sym 32 rounded, head fp32", 4, 32),
}


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    from .peer_torch import language_model, linears_of, logits_of

    form, linear_bits, head_bits = VARIANTS[name]
    model, started_s = language_model(work), time.perf_counter()
    for module in linears_of(model).values():
        module.weight.data = _rounded(module.weight.data, linear_bits)
    head = model.get_input_embeddings()
    head.weight.data = _rounded(head.weight.data, head_bits)
    seconds = time.perf_counter() - started_s
    ours(form, _size(model, linear_bits, head_bits), seconds, logits_of(model), inputs_of(work))


def ours(form: str, size: Size, seconds: float, logits: Logits, inputs: Inputs, note: str = "") -> None:
    """Print a row of ours. logits: token ids -> float32 [T, V], behind each token. seconds: of quantizing."""
    print_row(WHO, form, size, seconds, scored(logits, inputs), ("torch", "transformers"), note)


def _rounded(weight: Any, bits: int) -> Any:
    """torch [N, K] -> what is computed with."""
    roundings: dict[int, Callable[[Any], Any]] = {4: _int4, 8: _int8, 32: lambda same: same}
    return roundings[bits](weight)


def _int4(weight: Any) -> Any:
    import torch

    from drivekd.export.quantize.int4 import dequantized, quantize_blocks

    columns = weight.T.contiguous().numpy()  # [K, N]
    return torch.from_numpy(dequantized(quantize_blocks(columns, BLOCK), len(columns))).T.contiguous()


def _int8(weight: Any) -> Any:
    scales = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scales).round() * scales


def _size(model: Any, linear_bits: int, head_bits: int) -> Size:
    from .peer_torch import a_scale_a_row, linears_of, plain, weights_of

    count, head = weights_of(model)
    rows = sum(module.out_features for module in linears_of(model).values())

    def stored(weights: int, rows: int, bits: int) -> Any:
        if bits == 4:
            return blocks(weights, 4, BLOCK, scale_bits=32)
        return a_scale_a_row(weights, rows, scale_bits=32) if bits == 8 else plain(weights, bits)

    return Size(stored(count, rows, linear_bits), stored(head, model.config.vocab_size, head_bits))


if __name__ == "__main__":
    main()
