"""How embedding.safetensors is written: rows of the token embedding in fewer bits (runtime/decoder/embedding.py reads them).

Blocks lie along a row, a token is gathered with its own scales, which are float16. Values and scales are those of
weights.embedding_rows, which the model computed with.

V vocabulary, D hidden size, B values of a block
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drivekd.errors import ExportError
from drivekd.quantization.form import WeightForm
from drivekd.quantization.rounded_model import embedding_form as row_form
from drivekd.runtime.bundle.manifest import EmbeddingSpec

from .half import LARGEST_HALF
from .weights import embedding_rows

Floats = NDArray[np.float32]


def embedding_spec(precision: str, width: int, block: int) -> EmbeddingSpec:
    """The spec for rows of `width` values: `block` values a scale, or the whole row where blocks do not divide it.

    Raises ExportError for int4 of an odd width.
    """
    if precision in ("fp32", "fp16"):
        return EmbeddingSpec(precision, 0)
    if precision == "int4" and width % 2:
        raise ExportError(f"an embedding of {width} values a row cannot be int4, two values a byte; export it as int8")
    return EmbeddingSpec(precision, row_form(width, block).block)


def embedding_form(spec: EmbeddingSpec) -> WeightForm | None:
    """Of the rows as weights; None: they are float."""
    bits = {"int8": 8, "int4": 4}.get(spec.precision)
    return None if bits is None else WeightForm(bits, spec.block)


def quantize_embedding(weight: Floats, precision: str, block: int) -> dict[str, NDArray[Any]]:
    """[V, D] -> the tensors of embedding.safetensors, as EmbeddingSpec(precision, block) describes them; block as in that spec.

    Raises ExportError when a value is NaN, infinite, or too large for float16.
    """
    _check_range(weight, precision)
    if precision == "fp32":
        return {"weight": np.ascontiguousarray(weight, np.float32)}
    if precision == "fp16":
        return {"weight": weight.astype(np.float16)}
    assert precision in ("int8", "int4") and weight.shape[1] % block == 0, f"{precision} in blocks of {block}"
    form = embedding_form(EmbeddingSpec(precision, block))
    assert form is not None
    rows = embedding_rows(torch.from_numpy(weight), form)
    values = rows.values.numpy()
    return {"weight": values if precision == "int8" else _nibbles(values), "scales": rows.scales.half().numpy()}


def _nibbles(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two values a byte, value + 8, the even column in the low nibble."""
    shifted = (values + np.int8(8)).astype(np.uint8)
    return np.asarray(shifted[:, 0::2] | (shifted[:, 1::2] << 4))


def _check_range(weight: Floats, precision: str) -> None:
    largest = float(np.maximum(weight.max(), -weight.min()))
    limit = np.inf if precision == "fp32" else LARGEST_HALF
    if not largest <= limit or largest == np.inf:
        raise ExportError(f"the embedding's largest value is {largest:g}; {precision} takes finite ones up to {limit:g}")
