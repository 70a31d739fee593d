"""onnxruntime's own quantizers on the fp32 graph of onnxruntime-genai's builder: a peer of `quantized_peers.py`.

    PEER/bin/python -m benchmarks.export.peer_ort --work DIR --variant gptq     # in the environment of peer_genai.py

The builder itself takes its default, rtn and k_quant; here are the two that are left, HQQ and GPTQ, both with zero points.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .peer_genai import HEAD, PACKAGES, build, feeds_of, head_size_of, logits_of, size_of
from .peer_row import Inputs, inputs_of, print_row, scored, variant_of

WHO = "onnxruntime"
BLOCK = 32
HEAD_NODE = f"/{HEAD}/MatMul"
# name: form
VARIANTS: dict[str, str] = {"hqq": "int4 asym 32 HQQ, head fp32", "gptq": "int4 asym 32 GPTQ, head fp32"}


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    source, out, inputs = work / "genai" / "fp32", work / "ort" / name, inputs_of(work)
    build(work, source, "fp32", ())
    out.mkdir(parents=True, exist_ok=True)
    (out / "genai_config.json").write_text((source / "genai_config.json").read_text(encoding="utf-8"), encoding="utf-8")
    started_s = time.perf_counter()
    _quantize(source / "model.onnx", out / "model.onnx", name, inputs)
    seconds = time.perf_counter() - started_s
    model = out / "model.onnx"
    print_row(WHO, VARIANTS[name], size_of(model), seconds, scored(logits_of(model), inputs), PACKAGES[1:])


def _quantize(source: Path, out: Path, name: str, inputs: Inputs) -> None:
    import onnx

    quantizers: Any = import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    if name == "hqq":
        config = quantizers.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4)
    else:
        config = quantizers.GPTQWeightOnlyQuantConfig(calibration_data_reader=_Reader(source, inputs))
    quantizer = quantizers.MatMulNBitsQuantizer(
        onnx.load(source),
        block_size=BLOCK,
        is_symmetric=False,
        accuracy_level=4,
        nodes_to_exclude=[HEAD_NODE],
        algo_config=config,
    )
    quantizer.process()
    onnx.save(quantizer.model.model, out, save_as_external_data=True, location=f"{out.name}.data")


class _Reader:
    """The calibration windows as a CalibrationDataReader hands them out; it is copied before it is read."""

    def __init__(self, model: Path, inputs: Inputs) -> None:
        self._model, self._windows = model, inputs.windows()

    def __iter__(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        import onnxruntime

        specs = onnxruntime.InferenceSession(self._model, providers=["CPUExecutionProvider"]).get_inputs()
        for window in self._windows:
            yield feeds_of(specs, window, head_size_of(self._model))


if __name__ == "__main__":
    main()
