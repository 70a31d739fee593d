"""Weights that lie beside their graph, handed to onnxruntime from the verified bytes.

One way for every version: `add_external_initializers` is in all of them, and onnxruntime copies what it keeps (measured: 1.20,
1.23 and 1.31). Handing over whole files in memory is new in 1.31, and keeps a second copy of every weight that it packs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime

from drivekd.errors import BundleError
from drivekd.runtime.bundle.onnx_file import ExternalTensor

from .runner import Array

PLAIN = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool")
PACKED = {"uint4": 21, "int4": 22}  # numbers of onnx.TensorProto.DataType; numpy has no name for them


def external_values(tensors: Sequence[ExternalTensor], data: bytes, where: str) -> dict[str, onnxruntime.OrtValue]:
    """A session's external tensors over the data file's bytes, for `SessionOptions.add_external_initializers`.

    They must live until the session is made: the options know addresses only. Raises BundleError naming `where`.
    """
    return {tensor.name: _ort_value(tensor, data, where) for tensor in tensors}


def _ort_value(tensor: ExternalTensor, data: bytes, where: str) -> onnxruntime.OrtValue:
    if tensor.offset + tensor.nbytes > len(data):
        raise BundleError(f"{where}: {tensor.location} has {len(data)} bytes, {tensor.name} lies behind them")
    if tensor.dtype in PACKED:
        array = _one_byte_a_value(tensor, data)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, PACKED[tensor.dtype])
    if tensor.dtype not in PLAIN:
        raise BundleError(f"{where}: {tensor.name} is of type {tensor.dtype}; expected {', '.join((*PLAIN, *PACKED))}")
    flat = np.frombuffer(data, tensor.dtype, int(np.prod(tensor.dims)), tensor.offset)
    return onnxruntime.OrtValue.ortvalue_from_numpy(flat.reshape(tensor.dims))


def _one_byte_a_value(tensor: ExternalTensor, data: bytes) -> Array:
    """The packed values, in the shape of the unpacked ones.

    onnxruntime takes a value's shape from the array and reads two values a byte, thus the first half of what the array claims to
    have. Nothing is copied: the array may end behind the file's bytes, where nobody reads.
    """
    packed = np.frombuffer(data, np.uint8, tensor.nbytes, tensor.offset)
    strides = [int(np.prod(tensor.dims[axis + 1 :])) for axis in range(len(tensor.dims))]
    return np.lib.stride_tricks.as_strided(packed, tensor.dims, strides, writeable=False)
