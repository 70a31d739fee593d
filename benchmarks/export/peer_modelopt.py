"""NVIDIA's Model Optimizer on the checkpoint in torch, on the CPU: a peer of `quantized_peers.py`, in an environment of its own.

    python3.11 -m venv PEER && PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install torch==2.13.0 transformers==5.23.0 nvidia-modelopt==0.47.0
    PEER/bin/python -m benchmarks.export.peer_modelopt --work DIR --variant awq

Its extra for transformers asks for 5.14 or older; what is used here runs without it. The weights are simulated; scales counted as
fp16, and AWQ's factors of inputs not at all (they can be folded into the layer before, but for o_proj and down_proj).
"""

from __future__ import annotations

import copy
import time
from importlib import import_module
from typing import Any

from .peer_row import Size, blocks, inputs_of, print_row, scored, variant_of

WHO = "ModelOpt"
BLOCK = 32
# name: form, algorithm
VARIANTS: dict[str, tuple[str, Any]] = {
    "max": ("int4 sym 32 rounded, head fp32", "max"),
    "awq": ("int4 sym 32 AWQ, head fp32", "awq_lite"),
    "awq-clip": ("int4 sym 32 AWQ + clipping, head fp32", "awq_full"),
    "gptq": ("int4 sym 32 GPTQ, head fp32", {"method": "gptq"}),
}


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    import torch

    from .peer_torch import language_model, logits_of, plain, weights_of

    quantization: Any = import_module("modelopt.torch.quantization")  # only the peer's environment has it
    form, algorithm = VARIANTS[name]
    inputs, model = inputs_of(work), language_model(work)
    count, head = weights_of(model)
    config = copy.deepcopy(quantization.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == "*weight_quantizer":
            entry["cfg"]["block_sizes"][-1] = BLOCK
    config["algorithm"] = algorithm

    @torch.no_grad()
    def calibrate(model: Any) -> None:
        for window in inputs.windows():
            model(torch.tensor([window]))

    started_s = time.perf_counter()
    quantization.quantize(model, config, calibrate)
    seconds = time.perf_counter() - started_s
    size = Size(blocks(count, 4, BLOCK, scale_bits=16), plain(head, 32))
    print_row(WHO, form, size, seconds, scored(logits_of(model), inputs), ("nvidia-modelopt", "torch"))


if __name__ == "__main__":
    main()
