"""What will be built from a bundle: graphs, their verified bytes, profiles, and the memory that it will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivekd.errors import BundleError, ExportError
from drivekd.runtime.bundle.manifest import GraphSpec
from drivekd.runtime.bundle.reader import Bundle

from .profiles import Limits, Profile, decoder_profiles, limits_of, vision_profiles

GRAPHS = {"vision": "vision", "decoder": "decoder.concat"}  # engine -> graph of the manifest
# Times the bytes of graph and weights; measured with TensorRT-RTX 1.7: docs/tensorrt.md
MEMORY_FACTOR = 4.5
MEMORY_BASE_BYTES = 1_000_000_000  # libraries, and what even a tiny graph takes
WORKSPACE_BYTES = 4 << 30  # a limit, not a reservation: 1 GiB was too little for InternVL3-1B's prefill of six cameras
SCORE_BYTES = 12  # scores, mask and probabilities in fp32; TensorRT-RTX wanted 10.5 for each element of InternVL3-1B's scores


@dataclass(frozen=True)
class EngineSource:
    """One engine to build.

    model, weights: the verified bytes of its graph and of the external data beside it. scratch_bytes: what its largest call needs
    beside the weights, roughly.
    """

    engine: str
    graph: str
    spec: GraphSpec
    model: bytes
    weights: bytes | None
    profiles: tuple[Profile, ...]
    scratch_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """Of graph and weights together."""
        return len(self.model) + len(self.weights or b"")


def engine_sources(bundle: Bundle, limits: Limits | None = None) -> list[EngineSource]:
    """Vision and decoder of a verified bundle; `limits` None = what its prompts need.

    Raises BundleError when the bundle has no decoder in the concat dialect.
    """
    limits = limits or limits_of(bundle.manifest)
    return [_source(bundle, engine, graph, limits) for engine, graph in GRAPHS.items()]


def _source(bundle: Bundle, engine: str, graph: str, limits: Limits) -> EngineSource:
    if graph not in bundle.manifest.graphs:
        raise BundleError(
            f"{bundle.path}: TensorRT needs the graph {graph!r}, this bundle has {', '.join(bundle.manifest.graphs)}. "
            "Export again with both dialects, the default"
        )
    spec = bundle.manifest.graphs[graph]
    for name in (spec.file, spec.data_file):
        if name is not None and name not in bundle.files:
            raise BundleError(f"{bundle.path}: the graph {graph!r} names {name!r}, which is no file of the bundle")
    profiles = vision_profiles(spec, limits) if engine == "vision" else decoder_profiles(spec, limits)
    scores = bundle.manifest.model.num_heads * limits.prompt * (limits.prompt + limits.context)  # of prefill's largest call
    scratch_bytes = SCORE_BYTES * scores if engine == "decoder" else 0
    weights = None if spec.data_file is None else bundle.files[spec.data_file]
    return EngineSource(engine, graph, spec, bundle.files[spec.file], weights, profiles, scratch_bytes)


def build_memory_bytes(source: EngineSource) -> int:
    """What building will take at its peak, roughly."""
    return int(MEMORY_BASE_BYTES + MEMORY_FACTOR * source.num_bytes) + source.scratch_bytes


@dataclass(frozen=True)
class FreeMemory:
    """Of the machine, in bytes. A Jetson's GPU takes the same memory."""

    available: int
    swap: int


def free_memory(meminfo: Path = Path("/proc/meminfo")) -> FreeMemory:
    """What the kernel says is left."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    return FreeMemory(_bytes_of(lines, "MemAvailable"), _bytes_of(lines, "SwapFree"))


def _bytes_of(lines: Mapping[str, str], name: str) -> int:
    return int(lines[name].split()[0]) * 1024


def memory_line(source: EngineSource, free: FreeMemory) -> str:
    """What building needs beside what there is, for people. Raises ExportError when it cannot fit even with swap."""
    needed = build_memory_bytes(source)
    line = f"{source.engine}: building takes about {_gb(needed)} of memory, {_gb(free.available)} are free"
    if needed > free.available + free.swap:
        raise ExportError(
            f"{line} and {_gb(free.swap)} of swap. Close other programs, add swap, or quantize: "
            "drivekd export CHECKPOINT --precision int4"
        )
    return line + ("; it will swap, which is slow" if needed > free.available else "")


def _gb(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
