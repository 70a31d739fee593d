"""One ONNX graph becomes one serialized engine: TensorRT 10.3 to 11, or TensorRT-RTX in its place.

The modules `tensorrt` and `tensorrt_rtx` have the same classes; which one it is, is an argument. Always strongly typed: types are
those of the graph. With weak typing and FP16 Qwen2.5-VL's vision tower fell to a cosine of .14.
The parser gets the verified bytes. External data it can only read by path: a private folder gets a copy of the verified bytes.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from drivekd.errors import BundleError, ExportError

from .platforms import MIN_TENSORRT, version_numbers
from .profiles import Profile
from .progress import Messages, OnLine, Progress, logger_of, monitor_of, peak_memory_bytes, restart_peak_memory
from .sources import WORKSPACE_BYTES, EngineSource

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt_rtx"
TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
SHOWN_FAULTS = 4  # TensorRT repeats one fault in many words


@dataclass(frozen=True)
class BuildSettings:
    """capability: of the GPU to compile for without having it, None = the GPU here (TensorRT's only choice)."""

    capability: int | None = None
    workspace_bytes: int = WORKSPACE_BYTES


@dataclass(frozen=True)
class BuiltEngine:
    """data: the serialized engine where TensorRT holds it; a copy would be its size once more. timing_cache: what TensorRT
    measured, for the next build, b"" when it keeps none."""

    data: memoryview
    seconds: float
    peak_memory_bytes: int
    timing_cache: bytes
    warnings: tuple[str, ...] = field(repr=False)


def load_api(name: str) -> ModuleType:
    """Import tensorrt or tensorrt_rtx. Raises ExportError: not installed, or older than what the builder uses."""
    try:
        api = importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"{TITLES[name]} cannot be imported ({error})") from error
    if name == TENSORRT and version_numbers(api.__version__) < MIN_TENSORRT:
        raise ExportError(
            f"TensorRT {api.__version__} is too old; expected {'.'.join(map(str, MIN_TENSORRT))} or newer (JetPack 6.1). "
            "The ONNX bundle runs on onnxruntime"
        )
    return api


def build_engine(
    api: ModuleType,
    source: EngineSource,
    settings: BuildSettings,
    *,
    folder: Path,
    timing_cache: bytes = b"",
    on_line: OnLine,
) -> BuiltEngine:
    """Parse and compile one graph. folder: private and on a disk with room for the graph's weights.

    Raises ExportError with TensorRT's own words when it refuses the graph, a shape or the device; BundleError when the graph's
    inputs and outputs are not the manifest's.
    """
    restart_peak_memory()
    started_s = time.monotonic()
    messages, progress = Messages(), Progress(source.engine, on_line)
    builder = api.Builder(logger_of(api, messages))
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, builder.logger)  # holds the weights: it must live until the engine is built
    with tempfile.TemporaryDirectory(prefix=".weights.", dir=folder) as private:
        _parse(api, parser, source, Path(private), messages)
        _check_names(network, source)
        config = _config(api, builder, source, settings)
        config.progress_monitor = monitor = monitor_of(api, progress)
        cache = _attach_timing_cache(api, config, timing_cache, source.engine, on_line)
        serialized = builder.build_serialized_network(network, config)
    del monitor
    if progress.interrupt is not None:
        raise progress.interrupt
    if serialized is None or messages.faults:
        raise ExportError(_refusal(api, source, "compile", messages.faults))
    measured = b"" if cache is None else bytes(config.get_timing_cache().serialize())
    seconds = time.monotonic() - started_s
    return BuiltEngine(memoryview(serialized), seconds, peak_memory_bytes(), measured, tuple(messages.warnings))


def _parse(api: ModuleType, parser: Any, source: EngineSource, private: Path, messages: Messages) -> None:
    if source.weights is not None:
        assert source.spec.data_file is not None
        (private / source.spec.data_file).write_bytes(source.weights)
    # the path only says where external data lies: no file of this name is there
    if not parser.parse(source.model, str(private / source.spec.file)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise ExportError(_refusal(api, source, "parse", [_parser_words(error) for error in errors] or messages.faults))


def _parser_words(error: Any) -> str:
    node = f"node {error.node_name() or error.node()} ({error.node_operator()}): " if error.node_operator() else ""
    return f"{node}{error.desc()}"


def _refusal(api: ModuleType, source: EngineSource, verb: str, faults: Sequence[str]) -> str:
    words = "; ".join(dict.fromkeys(fault.strip() for fault in faults[:SHOWN_FAULTS])) or "it does not say why"
    return f"{TITLES[api.__name__]} {api.__version__} cannot {verb} {source.spec.file}: {words}"


def _check_names(network: Any, source: EngineSource) -> None:
    """A parser takes bytes that are no graph for an empty one."""
    found = {network.get_input(index).name for index in range(network.num_inputs)}
    given = {network.get_output(index).name for index in range(network.num_outputs)}
    stated, promised = {tensor.name for tensor in source.spec.inputs}, {tensor.name for tensor in source.spec.outputs}
    if found != stated or given != promised:
        wrong = sorted((found ^ stated) | (given ^ promised))
        raise BundleError(f"{source.spec.file}: its inputs and outputs are not those of the manifest: {', '.join(wrong[:4])}")


def _config(api: ModuleType, builder: Any, source: EngineSource, settings: BuildSettings) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(ahead_capability(api, settings.capability), 0)
    for profile in source.profiles:
        config.add_optimization_profile(_api_profile(builder, profile))
    return config


def ahead_capability(api: ModuleType, capability: int) -> Any:
    """TensorRT-RTX's name of a GPU to compile for. Raises ExportError when it compiles for none such."""
    known = [name for name in vars(api.ComputeCapability) if name.startswith("SM")]
    if f"SM{capability}" not in known:
        raise ExportError(f"{TITLES[api.__name__]} {api.__version__} compiles for {', '.join(known)}, not for SM{capability}")
    return getattr(api.ComputeCapability, f"SM{capability}")


def _api_profile(builder: Any, profile: Profile) -> Any:
    shapes = builder.create_optimization_profile()
    for name, (smallest, optimum, largest) in profile.shapes.items():
        shapes.set_shape(name, smallest, optimum, largest)
    return shapes


def _attach_timing_cache(api: ModuleType, config: Any, data: bytes, engine: str, on_line: OnLine) -> Any | None:
    """TensorRT keeps the cache by reference; TensorRT-RTX measures nothing ahead of time and has none."""
    if api.__name__ == TENSORRT_RTX:
        return None
    cache = config.create_timing_cache(data)
    if not config.set_timing_cache(cache, False):
        on_line(f"{engine}: the timing cache is another device's or version's; it is measured anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache
