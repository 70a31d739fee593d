"""Our own rows of `quantized_peers.py`: the checkpoint in fp32, and what `drivekd export` rounds its weights to, in torch.

    python -m benchmarks.export.peer_ours --work DIR --variant int4

The code is the export's (drivekd/quantization) on the calibration text that peers get; activations stay fp32 here, and an engine
may round them, too. The embedding's rows have 8 bits in every row but fp32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .peer_row import Size, blocks, inputs_of, print_row, scored, variant_of

WHO = "drivekd"
BLOCK = 32


@dataclass(frozen=True)
class Variant:
    """linears, head: bits. by_data: rounded on the calibration text, else to the nearest."""

    form: str
    linears: int
    head: int
    by_data: bool = True


VARIANTS = {
    "fp32": Variant("fp32", 32, 32),
    "int8": Variant("int8 sym 32 rounded, head int8", 8, 8, by_data=False),
    "int8-data": Variant("int8 sym 32 by data, head int8", 8, 8),
    "int4-nearest": Variant("int4 sym 32 rounded, head int4", 4, 4, by_data=False),
    "int4": Variant("int4 sym 32 by data, head int4", 4, 4),
    "int4-head8": Variant("int4 sym 32 by data, head int8", 4, 8),
}


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    from .peer_torch import language_model, logits_of

    variant, model, started_s = VARIANTS[name], language_model(work), time.perf_counter()
    if variant.linears < 32:
        _round(model, variant, inputs_of(work).windows())
    seconds = time.perf_counter() - started_s
    print_row(
        WHO,
        variant.form,
        _size(model, variant),
        seconds,
        scored(logits_of(model), inputs_of(work)),
        ("torch", "transformers"),
        "",
    )


def _round(model: Any, variant: Variant, chunks: Any) -> None:
    import torch
    from torch import nn

    from drivekd.quantization.form import WeightForm, quantized
    from drivekd.quantization.layers import Call, Stage, recorded, round_stages, round_to_nearest, set_weight, weight_of

    layers, table = list(model.model.layers), model.get_input_embeddings()
    inner = [
        {f"layers.{i}.{name}": m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        for i, layer in enumerate(layers)
    ]
    forms = {name: WeightForm(variant.linears, BLOCK) for linears in inner for name in linears}
    forms["lm_head"] = WeightForm(variant.head, BLOCK)
    ids = [torch.tensor([chunk]) for chunk in chunks]
    rows = quantized(weight_of(table), WeightForm(8, BLOCK), half=True).dequantized()
    if variant.by_data:
        with torch.no_grad(), recorded(layers) as (calls, exact):
            for chunk in ids:
                model.model(input_ids=chunk, use_cache=False)
        stages = [Stage(layer, linears, made) for layer, linears, made in zip(layers, inner, calls, strict=True)]
        tail = nn.Sequential(model.model.norm, model.lm_head)
        stages.append(Stage(tail, {"lm_head": model.lm_head}, [Call((), {})] * len(ids), last=True))
        round_stages(stages, exact, [rows[chunk] for chunk in ids], forms)
    else:
        round_to_nearest({name: m for linears in inner for name, m in linears.items()} | {"lm_head": model.lm_head}, forms)
    set_weight(table, rows)


def _size(model: Any, variant: Variant) -> Size:
    from .peer_torch import plain, weights_of

    return Size(
        *(
            plain(weights, bits) if bits == 32 else blocks(weights, bits, BLOCK, scale_bits=16)
            for weights, bits in zip(weights_of(model), (variant.linears, variant.head), strict=True)
        )
    )


if __name__ == "__main__":
    main()
