"""The GPU that engines are built for and run on, asked of the CUDA driver itself: there is no torch on a car."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

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
        module = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", DRIVER_VERSION.read_text(errors="replace"))
    except OSError:
        return version
    return f"{module[1]}, {version}" if module else version
