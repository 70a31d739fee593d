"""Intel's auto-round on the checkpoint in torch, on the CPU: a peer of `quantized_peers.py`, in an environment of its own.

    python3.11 -m venv PEER && PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install torch==2.13.0 transformers==5.23.0 auto-round==0.16.1
    PEER/bin/python -m benchmarks.export.peer_autoround --work DIR --variant sym

It learns, layer by layer, which way each weight is rounded and where its block is clipped (SignRound, arXiv 2309.05516). Its
symmetric form may have negative scales, which TensorRT's parser refuses; "positive" is its form without.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .peer_row import Size, blocks, inputs_of, print_row, scored, variant_of

WHO = "auto-round"
GROUP = 32
SEQUENCE = 512  # tokens of a sample
BATCH = 2  # samples a step: 8, its default, takes hours on two cores
# name: form, settings
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sym": ("int4 sym 32, 50 steps a layer, head fp32", {"sym": True, "iters": 50}),
    "sym-200": ("int4 sym 32, 200 steps a layer, head fp32", {"sym": True, "iters": 200}),
    "sym-rounded": ("int4 sym 32, no steps, head fp32", {"sym": True, "iters": 0}),
    "positive": ("int4 sym 32, scales > 0, 50 steps, head fp32", {"sym": True, "iters": 50, "data_type": "int_sym_gptq"}),
    "positive-200": ("int4 sym 32, scales > 0, 200 steps, head fp32", {"sym": True, "iters": 200, "data_type": "int_sym_gptq"}),
    "asym": ("int4 asym 32, 50 steps a layer, head fp32", {"sym": False, "iters": 50}),
    "asym-200": ("int4 asym 32, 200 steps a layer, head fp32", {"sym": False, "iters": 200}),
}


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    import torch
    from transformers import AutoTokenizer

    from .peer_row import LANGUAGE_FOLDER
    from .peer_torch import language_model, linears_of, logits_of, plain, weights_of

    auto_round: Any = import_module("auto_round")  # only the peer's environment has it
    form, settings = VARIANTS[name]
    inputs, model = inputs_of(work), language_model(work)
    count, head = weights_of(model)
    samples: Any = _samples(inputs.calibration)
    started_s = time.perf_counter()
    rounding = auto_round.AutoRound(
        model,
        tokenizer=AutoTokenizer.from_pretrained(work / LANGUAGE_FOLDER),
        bits=4,
        group_size=GROUP,
        dataset=torch.utils.data.DataLoader(samples, batch_size=1),
        seqlen=SEQUENCE,
        nsamples=len(samples),
        batch_size=BATCH,
        device_map="cpu",
        enable_torch_compile=False,  # compiled, "positive" fails: a scale is changed in place
        **settings,
    )
    model, _ = rounding.quantize()
    seconds = time.perf_counter() - started_s
    if settings["sym"]:
        _check_grid(model)
    scales = torch.cat([torch.as_tensor(module.scale).flatten() for module in linears_of(model).values()])
    stored = blocks(count, 4, GROUP, scale_bits=16, zero_bits=0 if settings["sym"] else 4)
    note = f"{float((scales < 0).float().mean()):.0%} of the scales are negative"
    scores = scored(logits_of(model.float()), inputs)
    print_row(WHO, form, Size(stored, plain(head, 32)), seconds, scores, ("auto-round", "torch"), note)


def _check_grid(model: Any) -> None:
    """The weights that are scored are whole multiples of the scales, -8 to 7: exits where they are not."""
    import torch

    from .peer_torch import linears_of

    for name, module in linears_of(model).items():
        weight, scale = module.weight.detach().float(), torch.as_tensor(module.scale).float()
        steps = weight.reshape(len(weight), -1, GROUP) / scale.reshape(len(weight), -1, 1)
        # 0.01: weight and scale were rounded to fp16 or fp32 apart
        if (steps - steps.round()).abs().max() > 0.01 or steps.min() < -8.01 or steps.max() > 7.01:
            raise SystemExit(f"{name}: {float((steps - steps.round()).abs().max())} off its grid, {steps.min()} to {steps.max()}")


def _samples(ids: Sequence[int]) -> list[dict[str, Any]]:
    import torch

    starts = range(0, len(ids) - SEQUENCE + 1, SEQUENCE)
    parts = [torch.tensor(ids[start : start + SEQUENCE]) for start in starts]
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]


if __name__ == "__main__":
    main()
