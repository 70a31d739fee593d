"""How embedding.safetensors is written: rows of the token embedding in fewer bits (runtime/decoder/embedding.py reads them).

Scales are float16 and lie along a row: a token is gathered with its own. int4 as in int4.py; int8: 127 steps up to the largest.

V vocabulary, D hidden size, B values of a block
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import ExportError
from drivekd.runtime.bundle.manifest import EmbeddingSpec

from .half import LARGEST_HALF
from .int4 import LOW, SMALLEST_SCALE, block_scales, rounded

INT8_LIMIT = 127
CHUNK_VALUES = 1 << 20

Floats = NDArray[np.float32]


def embedding_spec(precision: str, width: int, block: int) -> EmbeddingSpec:
    """The spec for rows of `width` values: `block` values a scale, or the whole row where blocks do not divide it.

    Raises ExportError for int4 of an odd width.
    """
    if precision in ("fp32", "fp16"):
        return EmbeddingSpec(precision, 0)
    if precision == "int4" and width % 2:
        raise ExportError(f"an embedding of {width} values a row cannot be int4, two values a byte; export it as int8")
    return EmbeddingSpec(precision, block if width % block == 0 else width)


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
    step = max(1, CHUNK_VALUES // weight.shape[1])
    quantize = _int8_rows if precision == "int8" else _int4_rows
    parts = [quantize(weight[start : start + step], block) for start in range(0, len(weight), step)]
    values, scales = zip(*parts, strict=True)
    return {"weight": np.concatenate(values), "scales": np.concatenate(scales)}


def _check_range(weight: Floats, precision: str) -> None:
    largest = float(np.maximum(weight.max(), -weight.min()))
    limit = np.inf if precision == "fp32" else LARGEST_HALF
    if not largest <= limit or largest == np.inf:
        raise ExportError(f"the embedding's largest value is {largest:g}; {precision} takes finite ones up to {limit:g}")


def _int8_rows(rows: Floats, block: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
    blocks = rows.reshape(len(rows), -1, block)
    scales = _half(np.abs(blocks).max(axis=2) / np.float32(INT8_LIMIT))
    values = np.clip(np.rint(blocks / scales[..., None].astype(np.float32)), -INT8_LIMIT, INT8_LIMIT)
    return values.astype(np.int8).reshape(rows.shape), scales


def _int4_rows(rows: Floats, block: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
    blocks = rows.reshape(len(rows), -1, block)
    scales = _half(block_scales(blocks, 2, SMALLEST_SCALE["fp16"]))
    values = rounded(blocks, scales[..., None].astype(np.float32)).reshape(rows.shape)
    nibbles = (values - np.int8(LOW)).astype(np.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), scales


def _half(scales: Floats) -> NDArray[np.float16]:
    """Rounded up, so that the largest value still fits; at least the smallest normal number."""
    nearest = np.maximum(scales, np.float32(SMALLEST_SCALE["fp16"])).astype(np.float16)
    return np.where(nearest < scales, np.nextafter(nearest, np.float16(np.inf)), nearest)
