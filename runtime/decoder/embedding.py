"""The embedding table as the bundle stores it: rows become float32 when they are asked for, the table never does.

V vocabulary, D hidden size, n values that share a scale (EmbeddingSpec.block).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from drivekd.errors import BundleError
from drivekd.runtime.bundle.manifest import EmbeddingSpec, ModelInfo

EMBEDDING_FILE = "embedding.safetensors"
INT4_ZERO = 8  # a nibble holds 0..15, its value is nibble - 8


@dataclass(frozen=True)
class _Layout:
    """How a precision stores one row of D values."""

    dtype: Any
    values_per_item: int = 1
    scaled: bool = False


LAYOUTS = {
    "fp32": _Layout(np.float32),
    "fp16": _Layout(np.float16),
    "int8": _Layout(np.int8, scaled=True),
    "int4": _Layout(np.uint8, values_per_item=2, scaled=True),
}


class EmbeddingTable:
    """Rows of an embedding by token id. num_bytes: what it holds in memory."""

    def __init__(self, weight: NDArray[Any], scales: NDArray[np.float16] | None) -> None:
        self._weight = weight
        self._scales = scales
        self.num_bytes = weight.nbytes + (0 if scales is None else scales.nbytes)

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Ids of any shape [...] -> their embeddings [..., D]."""
        stored = self._weight[ids]
        if self._scales is None:
            return np.asarray(stored, np.float32)
        values = _nibbles(stored) if stored.dtype == np.uint8 else stored.astype(np.float32)  # [..., D]
        scales = self._scales[ids].astype(np.float32)  # [..., D / n]
        size = values.shape[-1] // scales.shape[-1]
        return np.asarray((values.reshape(*scales.shape, size) * scales[..., None]).reshape(values.shape))


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[..., D / 2] -> [..., D]: the even column lies in the low nibble."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float32)  # [..., D / 2, 2]
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1]) - np.float32(INT4_ZERO)


def embedding_from_bytes(data: bytes, spec: EmbeddingSpec, model: ModelInfo, source: str) -> EmbeddingTable:
    """Read the bytes of embedding.safetensors.

    Raises BundleError naming `source`: no safetensors file, or tensors of other names, types or shapes than spec and model say.
    """
    expected = _expected_tensors(spec, model, source)
    try:
        tensors = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise BundleError(f"{source}: {EMBEDDING_FILE} cannot be read ({error})") from error
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise BundleError(f"{source}: {EMBEDDING_FILE}: expected {_words(expected)}; found {_words(found)}")
    return EmbeddingTable(tensors["weight"], tensors.get("scales"))


def _expected_tensors(spec: EmbeddingSpec, model: ModelInfo, source: str) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    layout = LAYOUTS.get(spec.precision)
    if layout is None:
        raise BundleError(f"{source}: embedding precision {spec.precision!r}; this drivekd reads {', '.join(LAYOUTS)}")
    rows, columns = model.vocab_size, model.hidden_size
    shape = rows, columns // layout.values_per_item
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {"weight": (np.dtype(layout.dtype), shape)}
    if not layout.scaled:
        if spec.block:
            raise BundleError(f"{source}: an {spec.precision} embedding has no blocks, the manifest says {spec.block}")
        return tensors
    if spec.block < 1 or columns % spec.block or columns % layout.values_per_item:
        raise BundleError(f"{source}: {columns} columns of the embedding cannot be cut into blocks of {spec.block}")
    return tensors | {"scales": (np.dtype(np.float16), (rows, columns // spec.block))}


def _words(tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in sorted(tensors.items())) or "nothing"
