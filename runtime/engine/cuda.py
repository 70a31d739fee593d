"""The GPU that engines are built for and run on, its memory and one stream, through the CUDA driver's own library.

libcuda.so.1 is on every machine with a GPU, a Jetson too; the CUDA runtime library, cuda-python and torch are not. TensorRT works
in the device's primary context, and so does this. Freed blocks are kept for the next tensor of about their size: an allocation
waits for the GPU, and a decode step makes two tensors a layer.
"""

from __future__ import annotations

import ctypes
import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from drivekd.errors import RunnerError

from .runner import Array

CUDA_LIBRARY = "libcuda.so.1"
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR (cuda.h)
NAME_BYTES = 256


@dataclass(frozen=True)
class Device:
    """capability: 87 = SM 8.7. driver: the kernel module's version and the CUDA that it knows."""

    name: str
    capability: int
    driver: str


def this_device(library: str = CUDA_LIBRARY) -> Device | None:
    """The first GPU, None when there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    if cuda.cuInit(0) != 0:
        return None
    device = ctypes.c_int()
    if cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    name = ctypes.create_string_buffer(NAME_BYTES)
    cuda.cuDeviceGetName(name, NAME_BYTES, device)
    capability = 10 * _attribute(cuda, MAJOR, device) + _attribute(cuda, MINOR, device)
    return Device(name.value.decode(errors="replace"), capability, _driver(cuda))


def _attribute(cuda: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def _driver(cuda: ctypes.CDLL) -> str:
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    try:
        module = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", DRIVER_VERSION.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return version
    return f"{module[1]}, {version}" if module else version


ALIGNMENT = 256  # bytes; what cuMemAlloc gives and TensorRT wants


class Block:
    """Device memory that goes back to its pool when nobody holds it any more."""

    def __init__(self, address: int) -> None:
        self.address = address


class CudaMemory:
    """The first GPU's memory and a stream of its own; a context manager. One thread at a time, any thread.

    Everything runs in the order of the stream, so a block may be used again while the call before still reads it.
    Every method raises RunnerError in the driver's own words.
    """

    def __init__(self, library: str = CUDA_LIBRARY) -> None:
        self._library = library
        self._driver: Any = None  # ctypes' face of libcuda; None before and after
        self._free: dict[int, list[int]] = {}  # size -> addresses
        self._addresses: list[int] = []
        self._thread = 0

    def __enter__(self) -> CudaMemory:
        try:
            self._driver = ctypes.CDLL(self._library)
        except OSError as error:
            raise RunnerError(f"{self._library} cannot be loaded ({error}); TensorRT needs NVIDIA's driver") from error
        self._device, self._context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._activate()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 1)  # CU_STREAM_NON_BLOCKING: nothing waits for stream 0
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if self._driver is None:
            return
        self._activate()
        for address in self._addresses:
            self._driver.cuMemFree_v2(ctypes.c_uint64(address))  # unchecked: after a failure there is nothing left to do
        self._driver.cuStreamDestroy_v2(self._stream)
        self._driver.cuDevicePrimaryCtxRelease_v2(self._device)
        self._driver, self._free, self._addresses = None, {}, []

    @property
    def stream(self) -> int:
        """CUstream as TensorRT takes it."""
        return int(self._stream.value or 0)

    def block(self, num_bytes: int) -> Block:
        """Memory for a tensor of num_bytes, which may be 0: TensorRT wants an address of its own for every tensor."""
        size = _size_class(num_bytes)
        kept = self._free.setdefault(size, [])
        found = Block(kept.pop() if kept else self.reserve(size))
        weakref.finalize(found, kept.append, found.address).atexit = False
        return found

    def reserve(self, num_bytes: int) -> int:
        """The address of memory that is kept until the end."""
        self._activate()
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(num_bytes, ALIGNMENT)))
        self._addresses.append(address.value)
        return address.value

    def upload(self, array: Array) -> DeviceArray:
        """A copy of a contiguous host array, which must stay as it is until `synchronize`."""
        self._activate()
        found = self.empty(array.shape, array.dtype)
        if array.nbytes:
            source = ctypes.c_void_p(array.ctypes.data)
            self._call("cuMemcpyHtoDAsync_v2", found.pointer, source, ctypes.c_size_t(array.nbytes), self._stream)
        return found

    def download(self, tensor: DeviceArray) -> Array:
        """A copy on the host, once everything before it is done."""
        self._activate()
        array = np.empty(tensor.dims, tensor.dtype)
        if array.nbytes:
            target = ctypes.c_void_p(array.ctypes.data)
            self._call("cuMemcpyDtoHAsync_v2", target, tensor.pointer, ctypes.c_size_t(array.nbytes), self._stream)
        self.synchronize()
        return array

    def empty(self, dims: Sequence[int], dtype: np.dtype[Any]) -> DeviceArray:
        """An unwritten tensor."""
        return DeviceArray(self, self.block(prod(dims) * dtype.itemsize), 0, tuple(dims), dtype)

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Between tensors of one size."""
        assert target.nbytes == source.nbytes
        if source.nbytes:
            self._activate()
            self._call("cuMemcpyDtoDAsync_v2", target.pointer, source.pointer, ctypes.c_size_t(source.nbytes), self._stream)

    def synchronize(self) -> None:
        """Wait until everything so far is done."""
        self._activate()
        self._call("cuStreamSynchronize", self._stream)

    def _activate(self) -> None:
        """A CUDA context belongs to a thread; ours follows whoever calls."""
        if self._driver is None:
            raise RunnerError("the engine is closed, and its memory with it")
        if self._thread != threading.get_ident():
            self._call("cuCtxSetCurrent", self._context)
            self._thread = threading.get_ident()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            word = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(word))
            raise RunnerError(f"CUDA: {name} failed with {code} ({(word.value or b'unknown').decode(errors='replace')})")


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A DeviceTensor in a block. offset: of its first value, in bytes."""

    memory: CudaMemory
    block: Block
    offset: int
    dims: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """That its values take in the block."""
        return prod(self.dims) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """Of its first value, as TensorRT takes it."""
        return self.block.address + self.offset

    @property
    def pointer(self) -> ctypes.c_uint64:
        """CUdeviceptr."""
        return ctypes.c_uint64(self.address)

    def numpy(self) -> Array:
        return self.memory.download(self)

    def shape(self) -> list[int]:
        return list(self.dims)

    def rows(self, start: int, stop: int) -> DeviceArray:
        """Some rows of this tensor: the same memory."""
        row_bytes = prod(self.dims[1:]) * self.dtype.itemsize
        return DeviceArray(self.memory, self.block, self.offset + start * row_bytes, (stop - start, *self.dims[1:]), self.dtype)

    def select(self, rows: Sequence[int]) -> DeviceArray:
        """A copy with these rows in this order; it never leaves the device."""
        found = self.memory.empty((len(rows), *self.dims[1:]), self.dtype)
        for target, source in enumerate(rows):
            self.memory.copy(found.rows(target, target + 1), self.rows(source, source + 1))
        return found


def _size_class(num_bytes: int) -> int:
    """Rounded up by at most an eighth: K/V that grows by a column stays in one class for many steps."""
    step = max(ALIGNMENT, 1 << max(num_bytes.bit_length() - 4, 0))
    return max(-(-num_bytes // step), 1) * step
