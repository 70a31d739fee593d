"""Intel's neural-compressor (its torch half) on the CPU: a peer of `quantized_peers.py`, in an environment of its own.

    python3.11 -m venv PEER && PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install torch==2.13.0 transformers==5.23.0 neural-compressor-pt==3.10
    PEER/bin/python -m benchmarks.export.peer_inc --work DIR --variant gptq

Scales counted as fp16.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from .peer_row import Size, blocks, inputs_of, print_row, scored, variant_of

WHO = "neural-compressor"
GROUP = 32
# name: form, whether symmetric, settings of GPTQConfig
VARIANTS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "gptq": ("int4 sym 32 GPTQ, head fp32", True, {}),
    "gptq-mse": ("int4 sym 32 GPTQ, scales searched, head fp32", True, {"use_mse_search": True}),
    "gptq-asym": ("int4 asym 32 GPTQ, head fp32", False, {}),
}


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    import torch

    from .peer_torch import language_model, logits_of, plain, weights_of

    quantization: Any = import_module("neural_compressor.torch.quantization")  # only the peer's environment has it
    form, symmetric, settings = VARIANTS[name]
    inputs, model = inputs_of(work), language_model(work)
    count, head = weights_of(model)
    model.config.use_cache = False
    config = quantization.GPTQConfig(use_sym=symmetric, group_size=GROUP, quant_lm_head=False, **settings)
    started_s = time.perf_counter()
    model = quantization.prepare(model, config)
    with torch.no_grad():
        for window in inputs.windows():
            model(torch.tensor([window]))
    model = quantization.convert(model)
    seconds = time.perf_counter() - started_s
    size = Size(blocks(count, 4, GROUP, scale_bits=16, zero_bits=0 if symmetric else 4), plain(head, 32))
    print_row(WHO, form, size, seconds, scored(logits_of(model), inputs), ("neural-compressor-pt", "torch"))


if __name__ == "__main__":
    main()
