"""ONNX Runtime as a runner: CPU by default, CUDA by name.

onnxruntime-gpu falls back to the CPU without a word when CUDA cannot start, so the provider that answers is compared with the
one that was asked. Every call is bound (IO binding): what is fed back to the graph stays on the provider's device, the rest
comes to the host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from types import TracebackType

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from drivekd.errors import BundleError, RunnerError
from drivekd.host_memory import large_blocks_apart, return_freed_memory
from drivekd.runtime.bundle.manifest import GraphSpec
from drivekd.runtime.bundle.onnx_file import read_onnx
from drivekd.runtime.bundle.reader import Bundle

from .ort_weights import external_values
from .runner import Array, DeviceTensor, Feed

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
DEVICES = {"ort-cpu": "cpu", "ort-cuda": "cuda"}  # as onnxruntime names a provider's memory
FED_BACK = "present."  # outputs that are the next call's inputs

# onnxruntime's exceptions share no base class
ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class OrtTensor:
    """A DeviceTensor in onnxruntime's memory."""

    def __init__(self, value: onnxruntime.OrtValue, device: str) -> None:
        self.value = value
        self._device = device

    def numpy(self) -> Array:
        array: Array = self.value.numpy()
        return array

    def shape(self) -> list[int]:
        return list(self.value.shape())

    def select(self, rows: Sequence[int]) -> OrtTensor:
        """A copy with these rows in this order. By way of the host: onnxruntime copies no rows on a device."""
        return OrtTensor(onnxruntime.OrtValue.ortvalue_from_numpy(self.numpy()[list(rows)], self._device, 0), self._device)


class BoundGraph:
    """One graph bound to host memory of fixed shapes: `run` reads and writes it, and allocates nothing for it.

    An array may be input and output at once, where the graph allows it.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, name: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self._session = session
        self._name = name
        self._binding = session.io_binding()
        self._inputs = {key: _shared(array) for key, array in inputs.items()}  # held: the binding knows addresses only
        self._outputs: dict[str, onnxruntime.OrtValue] = {}
        for key, value in self._inputs.items():
            self._binding.bind_ortvalue_input(key, value)
        for key, array in outputs.items():
            self.bind_output(key, array)

    def bind_output(self, name: str, array: Array) -> None:
        """Let the next run write this output into `array`."""
        self._outputs[name] = _shared(array)
        self._binding.bind_ortvalue_output(name, self._outputs[name])

    def run(self) -> None:
        """Raises RunnerError."""
        try:
            self._session.run_with_iobinding(self._binding)
        except (*ORT_ERRORS, RuntimeError) as error:  # a bare RuntimeError is what a failing operator raises here
            shapes = {key: value.shape() for key, value in self._inputs.items()}
            raise RunnerError(f"{self._name}: onnxruntime failed on {shapes}: {error}") from error


class OrtRunner:
    """A Runner: one graph of a verified bundle in one onnxruntime session.

    threads: of one operator; None leaves it to onnxruntime (all cores).
    """

    def __init__(self, bundle: Bundle, graph: str, *, backend: str = "ort-cpu", threads: int | None = None) -> None:
        self.name = graph
        self.spec: GraphSpec = bundle.manifest.graphs[graph]
        self._bundle: Bundle | None = bundle
        self._backend = backend
        self._threads = threads
        self._session: onnxruntime.InferenceSession | None = None

    def __enter__(self) -> OrtRunner:
        assert self._bundle is not None, "a runner is entered once"
        provider = PROVIDERS[self._backend]
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise RunnerError(
                f"backend {self._backend} needs onnxruntime's {provider}; this onnxruntime has {', '.join(available)}. "
                "For CUDA: pip uninstall onnxruntime && pip install 'drivekd[ort-gpu]'"
            )
        with large_blocks_apart():
            session = self._open(self._bundle, provider)
        started = session.get_providers()[0]
        if started != provider:
            raise RunnerError(f"{self.name}: asked onnxruntime for {provider}, it fell back to {started}; see its log above")
        self._check_tensors(session)
        self._session, self._bundle = session, None  # onnxruntime has its own copy; let the file's bytes go
        return_freed_memory()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._session = None

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundGraph:
        """Bind contiguous host arrays; outputs may be left for BoundGraph.bind_output. CPU only. Raises RunnerError."""
        return BoundGraph(self._started(), self.name, inputs, outputs)

    def infer(self, feeds: Mapping[str, Feed]) -> dict[str, DeviceTensor]:
        session = self._started()
        binding = session.io_binding()
        values = {name: _ort_value(feed) for name, feed in feeds.items()}  # held: a binding knows addresses only
        devices = {tensor.name: self._device_of(tensor.name) for tensor in self.spec.outputs}
        try:
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name, device in devices.items():
                binding.bind_output(name, device, 0)
            session.run_with_iobinding(binding)
        except (*ORT_ERRORS, RuntimeError) as error:  # a bare RuntimeError is what a failing operator raises here
            shapes = {name: list(value.shape()) for name, value in values.items()}
            raise RunnerError(f"{self.name}: onnxruntime failed on {shapes}: {error}") from error
        outputs = zip(devices.items(), binding.get_outputs(), strict=True)
        return {name: OrtTensor(value, device) for (name, device), value in outputs}

    def _device_of(self, output: str) -> str:
        """Where an output is wanted."""
        return DEVICES[self._backend] if output.startswith(FED_BACK) else "cpu"

    def _started(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise RunnerError(f"{self.name}: the session is closed")
        return self._session

    def _open(self, bundle: Bundle, provider: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        if self._threads is not None and self._threads > (
            os.cpu_count() or 1
        ):  # threads that take turns must not wait by spinning
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; its warnings are about its own graph optimiser
        # a plan for every shape that comes, in memory beside that of calls without one: 170 MB for a tile of InternViT-300M, and
        # no call is faster by it
        options.enable_mem_pattern = False
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # weights lie beside the arena
        if self.spec.precision == "int4":  # DequantizeLinear + MatMul become MatMulNBits, with int8 activations within a block
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        if self.spec.data_file is not None:
            where = f"{bundle.path}: {self.spec.file}"
            tensors = read_onnx(bundle.files[self.spec.file], where).external
            weights = external_values(tensors, bundle.files[self.spec.data_file], where)
            options.add_external_initializers(list(weights), list(weights.values()))
        providers = [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
        try:
            return onnxruntime.InferenceSession(bundle.files[self.spec.file], options, providers=providers)
        except ORT_ERRORS as error:
            raise RunnerError(f"{bundle.path}: onnxruntime cannot load {self.spec.file}: {error}") from error

    def _check_tensors(self, session: onnxruntime.InferenceSession) -> None:
        found = [f"{value.name} {_dtype(value.type)}" for value in (*session.get_inputs(), *session.get_outputs())]
        stated = [f"{tensor.name} {tensor.dtype}" for tensor in (*self.spec.inputs, *self.spec.outputs)]
        if found != stated:
            raise BundleError(f"{self.spec.file} has the tensors {found}, the manifest says {stated}")


@cache
def _share_arena() -> None:
    """One arena for what the calls of all sessions need, grown no further than asked: vision and decoder take turns in it.

    InternVL3-1B int4: 50 MB less with one camera, 65 with six than with an arena each (measured). It stays with the process.
    """
    place = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    as_requested = {"arena_extend_strategy": 1, "max_mem": 0}  # 0 = no limit
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(as_requested))


def _ort_value(feed: Feed) -> onnxruntime.OrtValue:
    if isinstance(feed, np.ndarray):
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed))
    assert isinstance(feed, OrtTensor), "a tensor of another engine"
    return feed.value


def _shared(array: Array) -> onnxruntime.OrtValue:
    """The very memory of a host array, which the returned value keeps alive."""
    assert array.flags.c_contiguous, "onnxruntime would take the memory for something else"
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _dtype(ort_type: str) -> str:
    """ "tensor(float16)" -> "float16", as numpy says it."""
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
