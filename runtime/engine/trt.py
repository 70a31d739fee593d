"""Native TensorRT as a runner: the engines that `drivekd export BUNDLE --trt` built on this device, or TensorRT-RTX in its place.

K/V stays on the device between calls; only what is asked for comes to the host. Written for TensorRT 10 and 11; tested against a
stand-in that runs the same graphs, not yet on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np

from drivekd.errors import RunnerError
from drivekd.runtime.bundle.engine_record import EnginePlatform, engine_platform, list_targets, verify_engine
from drivekd.runtime.bundle.manifest import GraphSpec
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.engine.cuda import CudaMemory, DeviceArray

from .cuda import this_device
from .runner import DeviceTensor, Feed
from .trt_engine import LoadedEngine, dims_of, load_engine

MODULES = {"tensorrt": "", "tensorrt_rtx": "rtx-"}  # what runs engines -> prefix of their targets; first come, first taken


def engine_module(bundle: Path) -> str | None:
    """The one of MODULES that is installed and for which the bundle has engines of this GPU; nothing is imported."""
    device = this_device()
    if device is None:
        return None
    targets = list_targets(bundle)
    wanted = {name: f"{prefix}sm{device.capability}" for name, prefix in MODULES.items()}
    return next((name for name, target in wanted.items() if target in targets and importlib.util.find_spec(name)), None)


class TrtRunner:
    """One graph of a verified bundle as the engine that was built from it."""

    def __init__(self, bundle: Bundle, graph: str) -> None:
        self.name = graph
        self.spec: GraphSpec = bundle.manifest.graphs[graph]
        self._bundle = bundle
        self._opened = ExitStack()
        self._loaded: LoadedEngine | None = None

    def __enter__(self) -> TrtRunner:
        api, here = _api_and_platform(self._bundle.path)
        engines = verify_engine(self._bundle, here.target, here=here, graph=self.name)
        with ExitStack() as opened:  # an engine that does not load leaves no memory behind
            memory = opened.enter_context(CudaMemory())
            self._loaded = load_engine(api, engines, self.name, self.spec, memory)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._loaded = None  # contexts and engine go before the memory under them
        self._opened.close()

    def infer(self, feeds: Mapping[str, Feed]) -> dict[str, DeviceTensor]:
        """As Runner says. Rows that no profile takes together (several columns of several rows) run one after the other, in
        their places of the same memory."""
        loaded = self._started()
        self._check(feeds)
        parts = self._parts(loaded, feeds)
        held: list[object] = []
        outputs: dict[str, DeviceArray] = {}
        for index, part in enumerate(parts):
            profile = loaded.profile(part)
            sources = {name: _contiguous(feed) for name, feed in part.items()}
            inputs = {name: _placed(feed, loaded.memory) for name, feed in sources.items()}
            held.append((sources, inputs))  # copies from the host may still run
            loaded.set_inputs(profile, inputs)
            outputs = outputs or loaded.new_outputs(profile, self.spec, len(parts))
            loaded.enqueue(profile, {name: _part(array, index, len(parts)) for name, array in outputs.items()})
        loaded.memory.synchronize()
        return dict(outputs)

    def _started(self) -> LoadedEngine:
        if self._loaded is None:
            raise RunnerError(f"{self.name}: the session is closed")
        return self._loaded

    def _check(self, feeds: Mapping[str, Feed]) -> None:
        expected = {tensor.name: tensor.dtype for tensor in self.spec.inputs}
        found = {name: feed.dtype.name for name, feed in feeds.items() if isinstance(feed, np.ndarray | DeviceArray)}
        if found != expected:
            wrong = sorted(set(found.items()) ^ set(expected.items()))
            raise RunnerError(f"{self.name}: feeds and the graph's inputs differ in {', '.join(map(' '.join, wrong))}")

    def _parts(self, loaded: LoadedEngine, feeds: Mapping[str, Feed]) -> list[Mapping[str, Feed]]:
        """The feeds as they are, or row by row."""
        if loaded.fitting(feeds) is not None:
            return [feeds]
        axes = {tensor.name: tensor.dims.index("batch") for tensor in self.spec.inputs if "batch" in tensor.dims}
        batch = max((dims_of(feeds[name])[axis] for name, axis in axes.items()), default=1)
        return [{name: _row(feed, axes.get(name), row) for name, feed in feeds.items()} for row in range(batch)]


def _api_and_platform(bundle: Path) -> tuple[ModuleType, EnginePlatform]:
    """The module that runs engines here, and what they must have been built for. Raises RunnerError."""
    device = this_device()
    if device is None:
        raise RunnerError("backend trt: no NVIDIA GPU or no driver answers (nvidia-smi); the bundle runs on ort-cpu")
    name = engine_module(bundle)
    if name is None:
        installed = [module for module in MODULES if importlib.util.find_spec(module)]
        raise RunnerError(
            f"backend trt: {bundle} has engines for {', '.join(list_targets(bundle)) or 'nothing'}, this GPU is "
            f"sm{device.capability} ({device.name}), and of {' and '.join(MODULES)} there is {', '.join(installed) or 'none'} "
            f"here. Build them: drivekd export {bundle} --trt"
        )
    try:
        api = importlib.import_module(name)
    except ImportError as error:
        raise RunnerError(f"backend trt: {name} cannot be imported ({error})") from error
    here = "" if MODULES[name] else device.name  # RTX engines are compiled for any GPU of their capability
    return api, engine_platform(name, api.__version__, device.capability, here)


def _row(feed: Feed, axis: int | None, row: int) -> Feed:
    """One row of a feed; axis None = it is the same for all rows."""
    if axis is None:
        return feed
    if isinstance(feed, np.ndarray):
        return np.take(feed, [row], axis=axis)
    assert isinstance(feed, DeviceArray) and axis == 0, "K/V has its rows first"
    return feed.rows(row, row + 1)


def _part(array: DeviceArray, index: int, num_parts: int) -> DeviceArray:
    size = array.dims[0] // num_parts
    return array.rows(index * size, (index + 1) * size)


def _contiguous(feed: Feed) -> Feed:
    return np.ascontiguousarray(feed) if isinstance(feed, np.ndarray) else feed


def _placed(feed: Feed, memory: CudaMemory) -> DeviceArray:
    if isinstance(feed, np.ndarray):
        return memory.upload(feed)
    assert isinstance(feed, DeviceArray), "checked with the types"
    return feed
