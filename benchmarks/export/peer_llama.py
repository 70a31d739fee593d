"""llama.cpp's quantizer, and its engine to score with: a peer of `quantized_peers.py`, in an environment of its own.

    python3.11 -m venv PEER && PEER/bin/pip install numpy gguf llama-cpp-python==0.3.36      # compiles: half an hour on two cores
    PEER/bin/python -m benchmarks.export.peer_llama --work DIR --variant q4_0

Its K types need rows of a multiple of 256 weights. Where a row has 576, as SmolLM2's, llama.cpp takes the next larger type with
blocks of 32 instead (Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0): the bits a weight in the table are those of the file. "imatrix":
weights of channels with large inputs count more. The engine rounds activations to int8 in blocks, too.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.runtime.decode_worker import open_llama

from .peer_row import Inputs, Logits, Size, Stored, inputs_of, print_row, scored, variant_of

WHO = "llama.cpp"
WEIGHTS_FILE, IMPORTANCE_FILE = "language.gguf", "importance.npz"
# name: form, llama_ftype, importance
VARIANTS: dict[str, tuple[str, int, bool]] = {
    "fp32": ("fp32", 0, False),
    "q4_0": ("Q4_0: int4 sym 32, head Q8_0", 2, False),
    "q4_0-imatrix": ("Q4_0: int4 sym 32 imatrix, head Q8_0", 2, True),
    "q4_1": ("Q4_1: int4 + minimum 32, head Q8_0", 3, False),
    "q4_1-imatrix": ("Q4_1: int4 + minimum 32 imatrix, head Q8_0", 3, True),
    "iq4_nl": ("IQ4_NL: 4 bits, uneven steps, head Q8_0", 25, False),
    "iq4_nl-imatrix": ("IQ4_NL: 4 bits, uneven steps, imatrix, head Q8_0", 25, True),
    "q4_k_m": ("Q4_K_M, head Q8_0", 15, False),
    "q4_k_m-imatrix": ("Q4_K_M imatrix, head Q8_0", 15, True),
    "q5_k_m": ("Q5_K_M, head Q8_0", 17, False),
    "q5_k_m-imatrix": ("Q5_K_M imatrix, head Q8_0", 17, True),
    "q8_0": ("Q8_0: int8 sym 32, head Q8_0", 7, False),
}
HEAD = "token_embd.weight"  # tied


def main() -> None:
    work, name = variant_of(__doc__, VARIANTS)
    form, kind, weighted = VARIANTS[name]
    inputs, out, seconds = inputs_of(work), work / WEIGHTS_FILE, 0.0
    if kind:
        out, started_s = work / f"llama-{name}.gguf", time.perf_counter()
        quantize(work / WEIGHTS_FILE, out, kind, dict(np.load(work / IMPORTANCE_FILE)) if weighted else {})
        seconds = time.perf_counter() - started_s
    size, types = size_of(out)
    scores = scored(logits_of(out, inputs), inputs)
    print_row(WHO, form, size, seconds, scores, ("llama-cpp-python",), types if "K" in form else "")


def quantize(source: Path, out: Path, kind: int, importance: dict[str, NDArray[np.float32]]) -> None:
    """kind: of llama_ftype. importance: by tensor; none for the plain rounding."""
    llama_cpp: Any = import_module("llama_cpp")  # only the peer's environment has it
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = kind
    if importance:
        params.imatrix = _array(llama_cpp.llama_model_imatrix_data, importance)
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp did not quantize {source}; its message is above")


def _array(entry: Any, importance: dict[str, NDArray[np.float32]]) -> Any:
    """llama_model_imatrix_data[], its end a name that is null; the arrays must outlive it."""
    entries = (entry * (len(importance) + 1))()
    for slot, (name, values) in zip(entries, importance.items(), strict=False):
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def logits_of(model: Path, inputs: Inputs) -> Logits:
    """Exits where llama.cpp reads a text as other tokens than transformers."""
    longest = max(map(len, inputs.texts.values()))
    llama = open_llama(model, n_ctx=longest, n_batch=longest, logits_all=True)
    for name, ids in inputs.texts.items():
        if (read := llama.tokenize(inputs.spelled[name].encode(), add_bos=False, special=True)[: len(ids)]) != ids:
            first = next(number for number, (one, other) in enumerate(zip(read, ids, strict=False)) if one != other)
            raise SystemExit(f"{name}: token {first} is {read[first]} for llama.cpp, {ids[first]} for transformers")

    def logits(ids: Sequence[int]) -> NDArray[np.float32]:
        llama.reset()
        llama.eval(list(ids))
        return np.asarray(llama.scores[: len(ids)], np.float32)

    return logits


def size_of(path: Path) -> tuple[Size, str]:
    """What the file holds, and how many linears of each type. A block's scales count as what they are: bits of the file."""
    from gguf import GGUFReader

    linears, head = [0, 0], Stored(1, 0, 0, 16)
    types: dict[str, int] = {}
    for tensor in GGUFReader(path).tensors:
        if tensor.name == HEAD:
            head = Stored(int(tensor.n_elements), int(tensor.n_bytes) * 8, 0, 16)
        elif len(tensor.shape) == 2:
            linears[0] += int(tensor.n_elements)
            linears[1] += int(tensor.n_bytes) * 8
            types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    counted = ", ".join(f"{count} {name}" for name, count in sorted(types.items()))
    return Size(Stored(linears[0], linears[1], 0, 16), head, path.stat().st_size / 1e6), counted


if __name__ == "__main__":
    main()
