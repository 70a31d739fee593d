"""GPTQModel on the CPU: a peer of `quantized_peers.py`, in an environment of its own.

    python3.11 -m venv PEER && PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install torch==2.13.0 transformers==5.23.0 gptqmodel==7.6.0
    PEER/bin/python -m benchmarks.export.peer_gptqmodel --work DIR --variant sym

The weights are those of the checkpoint that it saves, scored in fp32. Scales are fp16.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from .peer_row import LANGUAGE_FOLDER, Size, blocks, inputs_of, print_row, scored, variant_of

WHO = "GPTQModel"
GROUP = 32
PER_WORD = 8  # values of an int32
# name: form, settings of QuantizeConfig
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sym": ("int4 sym 32 GPTQ, head fp32", {"sym": True}),
    "sym-mse": ("int4 sym 32 GPTQ, scales searched, head fp32", {"sym": True, "mse": 2.4}),
    "asym": ("int4 asym 32 GPTQ, head fp32", {"sym": False}),
}


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    import torch

    from .peer_torch import language_model, linears_of, logits_of, plain, weights_of

    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # of two cores it takes one by default, and then fails to load
    gptqmodel: Any = import_module("gptqmodel")  # only the peer's environment has it
    form, settings = VARIANTS[name]
    inputs, out = inputs_of(work), work / f"gptqmodel-{name}"
    config = gptqmodel.QuantizeConfig(bits=4, group_size=GROUP, device="cpu", **settings)
    quantized = gptqmodel.GPTQModel.load(str(work / LANGUAGE_FOLDER), config, dtype=torch.float32)
    samples = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in inputs.windows()]
    started_s = time.perf_counter()
    quantized.quantize(samples, batch_size=1)
    seconds = time.perf_counter() - started_s
    quantized.save(str(out))
    model = language_model(work)
    count, head = weights_of(model)
    for module_name, weight in _weights(out).items():
        linears_of(model)[module_name.removeprefix("model.")].weight.data.copy_(weight)
    stored = blocks(count, 4, GROUP, scale_bits=16, zero_bits=0 if settings["sym"] else 4)
    print_row(WHO, form, Size(stored, plain(head, 32)), seconds, scored(logits_of(model), inputs), ("gptqmodel", "torch"))


def _weights(folder: Path) -> dict[str, Any]:
    """What a saved checkpoint's linears compute with: torch [N, K] by module."""
    from safetensors.torch import load_file

    arrays = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    names = [name.removesuffix(".qweight") for name in arrays if name.endswith(".qweight")]
    return {name: _weight(*(arrays[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx"))) for name in names}


def _weight(qweight: Any, qzeros: Any, scales: Any, groups: Any) -> Any:
    """qweight int32 [K / 8, N], qzeros int32 [K / B, N / 8] (less one), scales [K / B, N], groups [K]: a row's block."""
    import torch

    shifts = torch.arange(PER_WORD, dtype=torch.int32) * 4
    values = ((qweight[:, None] >> shifts[None, :, None]) & 15).reshape(-1, qweight.shape[1])  # [K, N]
    zeros = (((qzeros[..., None] >> shifts) & 15).reshape(len(qzeros), -1) + 1) & 15  # [K / B, N]
    rows = groups.long()
    return ((values - zeros[rows]) * scales.float()[rows]).T


if __name__ == "__main__":
    main()
