"""A stand-in for a GPU with TensorRT: a libcuda whose device is this machine's memory, and a `tensorrt` whose engines are
onnxruntime sessions on the same graphs.

Only the calls that drivekd makes are here, and they are as strict as the real ones: a call without a CUDA context, a shape
outside the profile, a tensor without an address, scratch memory that is too small are all refused. Device memory is given out
full of ones (NaN), so that nothing unwritten passes for a value.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivekd.export.trt.profiles import Limits, Profile, decoder_profiles, vision_profiles
from drivekd.runtime.bundle.engine_record import RECORD_VERSION, EngineEntry, EngineRecord, engine_platform
from drivekd.runtime.bundle.manifest import FileEntry, GraphSpec
from drivekd.runtime.bundle.reader import Bundle, digest_line
from drivekd.runtime.engine import backends, trt
from drivekd.runtime.engine.cuda import CudaMemory, Device
from drivekd.runtime.engine.ort import OrtRunner

ORIN = Device("Orin", 87, "540.4.0, CUDA 12.6")
LIMITS = Limits(images=2, branches=3, prompt=512, context=1024)
VERSION = "10.3.0.30"
SCRATCH_BYTES = 4096

LIBCUDA = """
#include <cstdlib>
#include <cstring>
#include <map>
typedef unsigned long long Pointer;
static int context, stream;
static thread_local void *current;
static std::map<Pointer, size_t> live;
extern "C" {
// what tests read: contexts and streams not given back, allocations so far, live bytes, bytes copied each way
long retained, streams, allocations, live_bytes, to_device, to_host, on_device, memory_limit = 1l << 40;
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int *device, int) { *device = 5; return 0; }
int cuDevicePrimaryCtxRetain(void **out, int device) { *out = &context; retained++; return device != 5; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return device != 5; }
int cuCtxSetCurrent(void *wanted) { current = wanted; return wanted != &context; }
int cuStreamCreate(void **out, unsigned flags) { *out = &stream; streams++; return current != &context || flags != 1; }
int cuStreamDestroy_v2(void *old) { streams--; return old != &stream; }
int cuStreamSynchronize(void *waited) { return current == &context && waited == &stream ? 0 : 201; }
int cuGetErrorString(int code, const char **out) { *out = code == 2 ? "out of memory" : "invalid context"; return 0; }
static bool inside(Pointer p, size_t n) {
    auto next = live.upper_bound(p);
    if (next == live.begin()) return false;
    auto block = std::prev(next);
    return p + n <= block->first + block->second;
}
int cuMemAlloc_v2(Pointer *out, size_t n) {
    if (current != &context) return 201;
    if (live_bytes + (long)n > memory_limit) return 2;
    *out = (Pointer)std::memset(std::aligned_alloc(256, (n + 255) / 256 * 256), 0xff, n);
    live[*out] = n; allocations++; live_bytes += n;
    return 0;
}
int cuMemFree_v2(Pointer p) { live_bytes -= live.at(p); live.erase(p); std::free((void *)p); return 0; }
int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t n, void *s) {
    if (current != &context || s != &stream || !inside(to, n)) return 1;
    std::memcpy((void *)to, from, n); to_device += n; return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t n, void *s) {
    if (current != &context || s != &stream || !inside(from, n)) return 1;
    std::memcpy(to, (void *)from, n); to_host += n; return 0;
}
int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t n, void *s) {
    if (current != &context || s != &stream || !inside(to, n) || !inside(from, n)) return 1;
    std::memmove((void *)to, (void *)from, n); on_device += n; return 0;
}
int is_device_memory(Pointer p, size_t n) { return inside(p, n); }
}
"""


def compile_libcuda(folder: Path) -> str:
    """A library of its own: its counters begin at zero."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cuda.cpp").write_text(LIBCUDA, encoding="utf-8")
    library = folder / "libcuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-std=c++17", "-o", str(library), str(folder / "cuda.cpp")], check=True)
    return str(library)


class Counters:
    """The library's numbers by name: `counters.allocations`."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)

    def __getattr__(self, name: str) -> int:
        return ctypes.c_long.in_dll(self._library, name).value

    def limit_memory(self, num_bytes: int) -> None:
        ctypes.c_long.in_dll(self._library, "memory_limit").value = num_bytes

    def is_device_memory(self, address: int, num_bytes: int) -> bool:
        return bool(self._library.is_device_memory(ctypes.c_uint64(address), ctypes.c_size_t(num_bytes)))


class FakeTensorRT(types.ModuleType):
    """`tensorrt` with engines of one bundle. An engine's bytes are the name of its graph."""

    def __init__(self, bundle: Bundle, library: str) -> None:
        super().__init__("tensorrt")
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        self.__version__ = VERSION
        self.bundle = bundle
        self.counters = Counters(library)
        self.engines: list[FakeEngine] = []
        self.refuses = ""  # what the next deserialization complains of
        self.ILogger = object
        self.TensorIOMode = types.SimpleNamespace(INPUT="input", OUTPUT="output")
        self.TensorLocation = types.SimpleNamespace(DEVICE="device", HOST="host")
        self.ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="user managed")

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self, logger)

    def nptype(self, dtype: str) -> type:
        kind: type = np.dtype(dtype).type
        return kind


class FakeRuntime:
    def __init__(self, api: FakeTensorRT, logger: Any) -> None:
        self._api, self._logger = api, logger

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        if self._api.refuses:
            self._logger.log("Severity.ERROR", self._api.refuses)
            return None
        self._api.engines.append(FakeEngine(self._api, self._logger, data.decode()))
        return self._api.engines[-1]


class FakeEngine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, api: FakeTensorRT, logger: Any, graph: str) -> None:
        self.api, self.logger = api, logger
        self.spec = api.bundle.manifest.graphs[graph]
        self.runner = OrtRunner(api.bundle, graph, threads=1).__enter__()
        self.profiles = profiles_of(graph, self.spec)
        self.contexts: list[FakeContext] = []
        self._tensors = {tensor.name: tensor for tensor in (*self.spec.inputs, *self.spec.outputs)}

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in [tensor.name for tensor in self.spec.inputs] else "output"

    def get_tensor_location(self, name: str) -> str:
        assert name in self._tensors
        return "device"

    def get_tensor_dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user managed"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.scratch = (0, 0)
        self.runs = 0
        self.fails = ""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream
        taken = index in [context.profile for context in self.engine.contexts if context is not self and context.scratch[0]]
        self.profile, self._shapes = index, {}
        return index < self.engine.num_optimization_profiles and not taken

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= SCRATCH_BYTES and memory % 256 == 0 and self.engine.api.counters.is_device_memory(memory, size)
        self.scratch = (memory, size)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        ranges = self.engine.profiles[self.profile].shapes[name]
        fits = len(shape) == len(ranges[0]) and all(a <= b <= c for a, b, c in zip(ranges[0], shape, ranges[2], strict=True))
        if not fits:
            self.engine.logger.log("Severity.ERROR", f"{name} {shape} is outside {ranges}")
        self._shapes[name] = tuple(shape)
        return fits

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory != 0 and name in [tensor.name for tensor in (*self.engine.spec.inputs, *self.engine.spec.outputs)]

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self.engine.spec.inputs if tensor.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for tensor in self.engine.spec.inputs:
            sizes |= {dim: size for dim, size in zip(tensor.dims, self._shapes[tensor.name], strict=True) if isinstance(dim, str)}
        dims = next(tensor.dims for tensor in self.engine.spec.outputs if tensor.name == name)
        return tuple(dim if isinstance(dim, int) else sum(sizes[part] for part in dim.split(" + ")) for dim in dims)

    def execute_async_v3(self, stream: int) -> bool:
        if self.fails:
            self.engine.logger.log("Severity.INTERNAL_ERROR", self.fails)
            return False
        assert stream and self.scratch[0]
        self.runs += 1
        feeds = {
            tensor.name: self._memory(tensor.name, self._shapes[tensor.name], tensor.dtype) for tensor in self.engine.spec.inputs
        }
        assert len({self._addresses[name] for name in feeds}) == len(feeds), "every tensor has memory of its own"
        found = self.engine.runner.infer({name: array.copy() for name, array in feeds.items()})
        for tensor in self.engine.spec.outputs:
            self._memory(tensor.name, self.get_tensor_shape(tensor.name), tensor.dtype)[...] = found[tensor.name].numpy()
        return True

    def _memory(self, name: str, dims: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
        """The tensor where it lies."""
        num_bytes = prod(dims) * np.dtype(dtype).itemsize
        assert self.engine.api.counters.is_device_memory(self._addresses[name], num_bytes), f"{name} lies outside device memory"
        raw = (ctypes.c_char * num_bytes).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(dims)


def profiles_of(graph: str, spec: GraphSpec) -> tuple[Profile, ...]:
    return vision_profiles(spec, LIMITS) if graph == "vision" else decoder_profiles(spec, LIMITS)


def install(fake: FakeTensorRT, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`import tensorrt` gives the stand-in, this machine's GPU is ORIN, and its memory is the compiled library's."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(trt, "CudaMemory", partial(CudaMemory, library))
    for module in (trt, backends):
        monkeypatch.setattr(module, "this_device", lambda: ORIN)


def write_engines(bundle: Bundle, version: str = VERSION) -> Path:
    """engines/sm87 of a bundle, as the builder leaves it."""
    folder = bundle.path / "engines" / "sm87"
    folder.mkdir(parents=True)
    entries = {}
    for name, graph in (("vision", "vision"), ("decoder", "decoder.concat")):
        data, spec = graph.encode(), bundle.manifest.graphs[graph]
        (folder / f"{name}.engine").write_bytes(data)
        shapes = {profile.name: dict(profile.shapes) for profile in profiles_of(graph, spec)}
        file = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
        entries[name] = EngineEntry(file, graph, "00", spec.precision, shapes, 1.0, 1000)
    platform = engine_platform("tensorrt", version, ORIN.capability, ORIN.name)
    record = EngineRecord(RECORD_VERSION, "0", bundle.digest, platform, ORIN.driver, entries, None).to_bytes()
    (folder / "engine.json").write_bytes(record)
    (folder / "engine.sha256").write_bytes(digest_line(hashlib.sha256(record).hexdigest()))
    return folder
