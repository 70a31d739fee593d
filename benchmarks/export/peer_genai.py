"""onnxruntime-genai's model builder, and onnxruntime's own quantizers on its fp32 graph: a peer of `quantized_peers.py`.

    python3.11 -m venv PEER && PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install torch==2.13.0 transformers==5.23.0 onnx==1.23.2 onnx_ir onnxruntime-genai==0.18.0
    PEER/bin/python -m benchmarks.export.peer_genai --work DIR --variant k_quant

Scored by onnxruntime on the builder's own model.onnx, which gives the logits of every token. At accuracy level 4, its default,
activations are rounded to int8 in blocks, too. The builder stores scales as fp32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .peer_row import LANGUAGE_FOLDER, Logits, Size, Stored, inputs_of, print_row, scored, variant_of

WHO = "ORT genai"
# name: form, precision, options of the builder
VARIANTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "fp32": ("fp32", "fp32", ()),
    "default": ("int4 sym 32 default, head int4", "int4", ()),
    "default-fp32": ("int4 sym 32 default, head int4; activations fp32", "int4", ("accuracy_level=1",)),
    "default-asym": ("int4 asym 32 default, head int4", "int4", ("is_symmetric=false",)),
    "rtn": ("int4 sym 32 rtn, head int4", "int4", ("algo_config=rtn",)),
    "rtn_last": ("int4 sym 32 rtn, head int8", "int4", ("algo_config=rtn_last",)),
    "k_quant": ("int4 asym 32 k_quant, head int4", "int4", ("algo_config=k_quant",)),
    "k_quant_last": ("int4 asym 32 k_quant, head int8", "int4", ("algo_config=k_quant_last",)),
    "k_quant_mixed": ("int4/int8 asym 32 k_quant_mixed, head int8", "int4", ("algo_config=k_quant_mixed",)),
    "int8": ("int8 sym 32 default, head int8", "int8", ()),
}
HEAD = "lm_head"


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    form, precision, options = VARIANTS[name]
    out = work / "genai" / name
    seconds = build(work, out, precision, options)
    note = "" if precision == "fp32" else "seconds hold loading and building"
    model = out / "model.onnx"
    print_row(WHO, form, size_of(model), seconds, scored(logits_of(model), inputs_of(work)), PACKAGES, note)


PACKAGES = ("onnxruntime-genai", "onnxruntime")


def build(work: Path, out: Path, precision: str, options: Sequence[str]) -> float:
    """Seconds that the builder took, now or before."""
    kept = out / "seconds"
    if kept.exists():
        return float(kept.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(work / LANGUAGE_FOLDER), "-o", str(out)]
    command += ["-p", precision, "-e", "cpu", "-c", str(work / "genai" / "cache")]
    started_s = time.perf_counter()
    subprocess.run([*command, *(["--extra_options", *options] if options else [])], check=True, stdout=sys.stderr)
    kept.write_text(str(time.perf_counter() - started_s), encoding="utf-8")
    return float(kept.read_text(encoding="utf-8"))


def logits_of(model: Path) -> Logits:
    """All logits of a prompt that nothing precedes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def logits(ids: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(session.run(["logits"], feeds_of(session.get_inputs(), ids, head_size_of(model)))[0][0])

    return logits


def head_size_of(model: Path) -> int:
    return int(json.loads((model.parent / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]["head_size"])


def feeds_of(specs: Sequence[Any], ids: Sequence[int], head_size: int) -> dict[str, NDArray[Any]]:
    """A prompt and empty K/V [1, heads, 0, head_size]. specs: the session's inputs."""
    tokens = {"input_ids": ids, "attention_mask": [1] * len(ids), "position_ids": range(len(ids))}
    feeds: dict[str, NDArray[Any]] = {}
    for spec in specs:
        known = spec.name in tokens
        feeds[spec.name] = (
            np.asarray([tokens[spec.name]], np.int64) if known else np.zeros((1, spec.shape[1], 0, head_size), np.float32)
        )
    return feeds


def size_of(path: Path) -> Size:
    """What the graph's MatMulNBits and MatMul nodes hold, and the size of its files."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    arrays = {one.name: one for one in model.graph.initializer}
    found: dict[bool, list[Stored]] = {False: [], True: []}
    for node in model.graph.node:
        if node.op_type in ("MatMulNBits", "MatMul"):
            weights = [arrays[name] for name in node.input[1:] if name in arrays]
            if weights:
                found[HEAD in node.name].append(_stored(node, weights))
    files = [one for one in path.parent.iterdir() if one.name.startswith(path.name)]
    return Size(sum_of(found[False]), sum_of(found[True]), sum(one.stat().st_size for one in files) / 1e6)


def _stored(node: Any, tensors: Sequence[Any]) -> Stored:
    if node.op_type == "MatMul":
        return Stored(int(np.prod(tensors[0].dims)), 32 * int(np.prod(tensors[0].dims)), 0, 32)
    sizes = {one.name: one.i for one in node.attribute}
    values, scales, *zeros = tensors
    packed = sum(int(np.prod(one.dims)) * 8 for one in (values, *zeros))  # uint8
    return Stored(sizes["K"] * sizes["N"], packed, int(np.prod(scales.dims)), 32)


def sum_of(parts: Sequence[Stored]) -> Stored:
    total, *rest = parts
    for one in rest:
        total += one
    return total


if __name__ == "__main__":
    main()
