"""ONNX Runtime as a runner: CPU by default, CUDA by name.

onnxruntime-gpu falls back to the CPU without a word when CUDA cannot start, so the provider that answers is compared with the
one that was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from drivekd.errors import BundleError, RunnerError, UsageError

from .bundle import Bundle
from .manifest import GraphSpec
from .runner import DeviceTensor, Feed

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}

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


def ort_backend(name: str) -> str:
    """Resolve "auto" and refuse unknown names. Raises UsageError."""
    if name == "auto":
        return "ort-cpu"
    if name not in PROVIDERS:
        raise UsageError(f"backend {name!r} is unknown; this version has: auto, {', '.join(PROVIDERS)}")
    return name


class OrtRunner:
    """One graph of a verified bundle in one onnxruntime session.

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
        session = self._open(self._bundle, provider)
        started = session.get_providers()[0]
        if started != provider:
            raise RunnerError(f"{self.name}: asked onnxruntime for {provider}, it fell back to {started}; see its log above")
        self._check_names(session)
        self._session, self._bundle = session, None  # onnxruntime has its own copy; let the file's bytes go
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._session = None

    def infer(self, feeds: Mapping[str, Feed]) -> dict[str, DeviceTensor]:
        if self._session is None:
            raise RunnerError(f"{self.name}: the session is closed")
        values = {name: _ort_value(feed) for name, feed in feeds.items()}
        names = [tensor.name for tensor in self.spec.outputs]
        try:
            outputs = self._session.run_with_ort_values(names, values)
        except ORT_ERRORS as error:
            shapes = {name: list(feed.shape() if callable(feed.shape) else feed.shape) for name, feed in feeds.items()}
            raise RunnerError(f"{self.name}: onnxruntime failed on {shapes}: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def _open(self, bundle: Bundle, provider: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3  # errors; its warnings are about its own graph optimiser
        if self.spec.data_file is not None:
            data = bundle.files[self.spec.data_file]
            options.add_external_initializers_from_files_in_memory([self.spec.data_file], [data], [len(data)])
        providers = [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
        try:
            return onnxruntime.InferenceSession(bundle.files[self.spec.file], options, providers=providers)
        except ORT_ERRORS as error:
            raise RunnerError(f"{bundle.path}: onnxruntime cannot load {self.spec.file}: {error}") from error

    def _check_names(self, session: onnxruntime.InferenceSession) -> None:
        found = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
        stated = [tensor.name for tensor in (*self.spec.inputs, *self.spec.outputs)]
        if found != stated:
            raise BundleError(f"{self.spec.file} has the tensors {found}, the manifest says {stated}")


def _ort_value(feed: Feed) -> onnxruntime.OrtValue:
    if isinstance(feed, np.ndarray):
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed))
    assert isinstance(feed, onnxruntime.OrtValue)
    return feed
