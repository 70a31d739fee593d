"""A TensorRT engine at work: deserialized from verified bytes, held against the manifest, one context a profile.

The contexts run one after the other, so they share one block of scratch memory, as large as the largest of them needs. The
modules `tensorrt` and `tensorrt_rtx` have the same classes; which one it is, is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from drivekd.errors import BundleError, RunnerError
from drivekd.runtime.bundle.engine_record import EngineEntry, VerifiedEngines
from drivekd.runtime.bundle.manifest import GraphSpec
from drivekd.runtime.engine.cuda import CudaMemory, DeviceArray

from .runner import Feed

KEPT_ERRORS = 4  # TensorRT repeats one fault in many words
REBUILD = "Build the engines again: drivekd export BUNDLE --trt"

Ranges: TypeAlias = Mapping[str, tuple[tuple[int, ...], ...]]  # input -> min, opt, max


@dataclass(frozen=True)
class Profile:
    """ranges: of inputs with a free dim. context: an IExecutionContext."""

    name: str
    ranges: Ranges
    context: Any

    def takes(self, feeds: Mapping[str, Feed]) -> bool:
        """Whether every dimension lies within its range. feeds: also of inputs whose dimensions are fixed."""
        return all(
            all(low <= size <= high for low, size, high in zip(ranges[0], dims_of(feeds[name]), ranges[2], strict=True))
            for name, ranges in self.ranges.items()
        )


@dataclass(frozen=True)
class LoadedEngine:
    """errors: TensorRT's last words. runtime, engine: held as long as their contexts."""

    graph: str
    memory: CudaMemory
    errors: deque[str]
    runtime: Any
    engine: Any
    profiles: tuple[Profile, ...]

    def fitting(self, feeds: Mapping[str, Feed]) -> Profile | None:
        """The last that takes them: the builder lists the general one (prefill) before the one tuned for a step (decode)."""
        return next((profile for profile in reversed(self.profiles) if profile.takes(feeds)), None)

    def profile(self, feeds: Mapping[str, Feed]) -> Profile:
        """As `fitting`. Raises RunnerError when none fits."""
        if (found := self.fitting(feeds)) is not None:
            return found
        shapes = {name: list(dims_of(feed)) for name, feed in feeds.items() if not name.startswith("past_key_values.")}
        largest = {profile.name: {k: list(v[2]) for k, v in profile.ranges.items() if k in shapes} for profile in self.profiles}
        raise RunnerError(
            f"{self.graph}: no profile of the engine takes {shapes}; the largest are {largest}. Ask with fewer cameras or a "
            "shorter question, or build the engines again: drivekd export BUNDLE --trt"
        )

    def set_inputs(self, profile: Profile, inputs: Mapping[str, DeviceArray]) -> None:
        """Bind shapes and addresses. Raises RunnerError: a shape outside the profile, or an input is missing."""
        context = profile.context
        for name, array in inputs.items():
            if not (context.set_input_shape(name, array.dims) and context.set_tensor_address(name, array.address)):
                raise self._failed(f"TensorRT does not take {name} {list(array.dims)}")
        if missing := context.infer_shapes():
            raise self._failed(f"TensorRT does not know the shapes of {', '.join(missing)}")

    def new_outputs(self, profile: Profile, spec: GraphSpec, num_parts: int) -> dict[str, DeviceArray]:
        """Room for num_parts calls of the shapes that are set, one behind the other."""
        shapes = {tensor.name: tuple(profile.context.get_tensor_shape(tensor.name)) for tensor in spec.outputs}
        if unknown := [name for name, dims in shapes.items() if min(dims, default=0) < 0]:
            raise self._failed(f"TensorRT gives {unknown[0]} no shape")
        return {
            tensor.name: self.memory.empty((num_parts * dims[0], *dims[1:]), np.dtype(tensor.dtype))
            for tensor, dims in zip(spec.outputs, shapes.values(), strict=True)
        }

    def enqueue(self, profile: Profile, outputs: Mapping[str, DeviceArray]) -> None:
        """Start it on the memory's stream; outputs are there after its next synchronize. Raises RunnerError."""
        taken = all(profile.context.set_tensor_address(name, array.address) for name, array in outputs.items())
        if not (taken and profile.context.execute_async_v3(self.memory.stream)):
            raise self._failed(f"TensorRT failed in its profile {profile.name}")

    def _failed(self, text: str) -> RunnerError:
        return RunnerError(_with_words(f"{self.graph}: {text}", self.errors))


def load_engine(api: ModuleType, engines: VerifiedEngines, graph: str, spec: GraphSpec, memory: CudaMemory) -> LoadedEngine:
    """Deserialize the engine that was built from `graph`; the engines' bytes are let go.

    Raises BundleError (none of this graph, or it is not what the manifest says), RunnerError.
    """
    errors: deque[str] = deque(maxlen=KEPT_ERRORS)
    found = [(name, entry) for name, entry in engines.record.engines.items() if entry.graph == graph]
    if len(found) != 1:
        raise BundleError(f"engines/{engines.record.platform.target} has {len(found)} engines of {graph}. {REBUILD}")
    name, entry = found[0]
    runtime = api.Runtime(_logger_of(api, errors))
    engine = runtime.deserialize_cuda_engine(engines.engine(name))
    engines.files.clear()  # TensorRT has its own copy
    if engine is None:
        raise RunnerError(_with_words(f"{graph}: TensorRT cannot load its engine", errors))
    _check_tensors(api, engine, graph, spec)
    return LoadedEngine(graph, memory, errors, runtime, engine, _open_profiles(api, engine, entry, memory, errors))


def _open_profiles(
    api: ModuleType, engine: Any, entry: EngineEntry, memory: CudaMemory, errors: Sequence[str]
) -> tuple[Profile, ...]:
    stated: Mapping[str, Ranges] = entry.profiles or {"fixed": {}}
    if engine.num_optimization_profiles != len(stated):
        found = engine.num_optimization_profiles
        raise BundleError(f"{entry.graph}: its engine has {found} profiles, not {len(stated)}. {REBUILD}")
    scratch_bytes, profiles = engine.device_memory_size_v2, []
    scratch = memory.reserve(scratch_bytes)
    for index, (name, ranges) in enumerate(stated.items()):
        context = engine.create_execution_context(api.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None or not context.set_optimization_profile_async(index, memory.stream):
            raise RunnerError(_with_words(f"{entry.graph}: TensorRT gives no context for its profile {name}", errors))
        context.set_device_memory(scratch, scratch_bytes)
        profiles.append(Profile(name, ranges, context))
    memory.synchronize()
    return tuple(profiles)


def _check_tensors(api: ModuleType, engine: Any, graph: str, spec: GraphSpec) -> None:
    """The record vouches for the bytes; here the engine itself says what it takes and gives."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {_tensor_words(api, engine, name) for name in names}
    stated = {f"input {tensor.name} {tensor.dtype}" for tensor in spec.inputs}
    stated |= {f"output {tensor.name} {tensor.dtype}" for tensor in spec.outputs}
    if found != stated:
        raise BundleError(f"{graph}: its engine and the manifest differ in {', '.join(sorted(found ^ stated))}. {REBUILD}")


def _tensor_words(api: ModuleType, engine: Any, name: str) -> str:
    kind = "input" if engine.get_tensor_mode(name) == api.TensorIOMode.INPUT else "output"
    place = "" if engine.get_tensor_location(name) == api.TensorLocation.DEVICE else " on the host"
    return f"{kind} {name} {np.dtype(api.nptype(engine.get_tensor_dtype(name))).name}{place}"


def _logger_of(api: ModuleType, errors: deque[str]) -> Any:
    """TensorRT's ILogger that keeps its last errors. It is called from TensorRT's threads."""

    def start(self: Any) -> None:
        api.ILogger.__init__(self)

    def log(self: Any, severity: Any, text: str) -> None:
        if "ERROR" in str(severity):
            errors.append(text)

    return type("KeptErrors", (api.ILogger,), {"__init__": start, "log": log})()


def _with_words(text: str, errors: Sequence[str]) -> str:
    return f"{text}: {'; '.join(dict.fromkeys(error.strip() for error in errors)) or 'it does not say why'}"


def dims_of(feed: Feed) -> tuple[int, ...]:
    """Of an array on the host or of a tensor in an engine's memory."""
    return feed.shape if isinstance(feed, np.ndarray) else tuple(feed.shape())
