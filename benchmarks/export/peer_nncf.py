"""NNCF's weight compression of the checkpoint in torch: a peer of `quantized_peers.py`, in an environment of its own.

    python3.11 -m venv PEER && PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install torch==2.13.0 transformers==5.23.0 nncf==3.4.0
    PEER/bin/python -m benchmarks.export.peer_nncf --work DIR --variant sym-awq-scales

Embedding and head are int8 with a zero point a row, its default (`all_layers=False`); its scales are fp16. Its GPTQ is not
there for torch: the backend refuses the option.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from .peer_row import Size, blocks, inputs_of, print_row, scored, variant_of

WHO = "NNCF"
GROUP = 32
# name: form, mode, settings of nncf.compress_weights
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sym": ("int4 sym 32 rounded, head int8", "INT4_SYM", {}),
    "sym-awq-scales": ("int4 sym 32 AWQ + scale estimation, head int8", "INT4_SYM", {"awq": True, "scale_estimation": True}),
    "asym": ("int4 asym 32 rounded, head int8", "INT4_ASYM", {}),
    "asym-awq-scales": ("int4 asym 32 AWQ + scale estimation, head int8", "INT4_ASYM", {"awq": True, "scale_estimation": True}),
}


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    import torch

    from .peer_torch import a_scale_a_row, language_model, logits_of, weights_of

    nncf: Any = import_module("nncf")  # only the peer's environment has it
    form, mode, settings = VARIANTS[name]
    inputs, model = inputs_of(work), language_model(work)
    model.config.use_cache = False
    count, head = weights_of(model)
    windows = [{"input_ids": torch.tensor([window])} for window in inputs.windows()]
    started_s = time.perf_counter()
    # Without data-driven settings the samples only trace the graph
    model = nncf.compress_weights(
        model, mode=nncf.CompressWeightsMode[mode], group_size=GROUP, ratio=1.0, dataset=nncf.Dataset(windows), **settings
    )
    seconds = time.perf_counter() - started_s
    size = Size(
        blocks(count, 4, GROUP, scale_bits=16, zero_bits=4 if mode == "INT4_ASYM" else 0),
        a_scale_a_row(head, model.config.vocab_size, scale_bits=16, zero_bits=8),
    )
    print_row(WHO, form, size, seconds, scored(logits_of(model), inputs), ("nncf", "torch"))


if __name__ == "__main__":
    main()
