"""TensorRT engines in a bundle, built on the machine that will run them. Imports no torch, transformers or onnx.

Targets are names: sm87 is TensorRT for the GPU here, rtx-sm86 is TensorRT-RTX, compiled ahead of time without a GPU. Each has its
own directory engines/<target>/, built aside and renamed: it is whole or not there.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from drivekd import __version__
from drivekd.errors import BundleError, ExportError, UsageError
from drivekd.files import whole_directory
from drivekd.runtime.bundle.engine_record import (
    RECORD_DIGEST_FILE,
    RECORD_FILE,
    RECORD_VERSION,
    TARGET,
    TIMING_CACHE_FILE,
    EngineEntry,
    EnginePlatform,
    EngineRecord,
    engine_file,
    engine_platform,
    read_engines,
)
from drivekd.runtime.bundle.manifest import ENGINES_DIR, FileEntry
from drivekd.runtime.bundle.reader import digest_line, read_bundle
from drivekd.runtime.engine.cuda import this_device

from .builder import TENSORRT, TENSORRT_RTX, BuildSettings, BuiltEngine, ahead_capability, build_engine, load_api
from .commands import engine_commands
from .profiles import Limits
from .sources import WORKSPACE_BYTES, EngineSource, engine_sources, free_memory, memory_line

AHEAD_OF_TIME = (86, 89)  # a GPU without FP8 and one with: Ampere as Orin is, and Ada
ENGINE_HEADER = ["engine", "size", "built in", "peak memory"]
OnLine = Callable[[str], None]


@dataclass(frozen=True)
class EngineRow:
    """What was built. engine: "sm87/decoder". peak_memory_bytes: of the process while building it."""

    engine: str
    bytes: int
    seconds: float
    peak_memory_bytes: int

    def cells(self) -> list[str]:
        """Text under ENGINE_HEADER."""
        size, peak = f"{self.bytes / 1e6:,.1f} MB", f"{self.peak_memory_bytes / 1e6:,.0f} MB"
        return [self.engine, size, f"{self.seconds:.1f} s", peak]


def engines_from_bundle(
    bundle: Path,
    *,
    targets: Sequence[str] = (),
    on_line: OnLine | None = None,
    limits: Limits | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
    public_key: Path | None = None,
) -> list[EngineRow]:
    """Build engines/<target>/ inside a verified bundle.

    targets: () = TensorRT for the GPU here. on_line: gets what there is to tell while building. limits: the largest calls, None =
    what the bundle's prompts need. workspace_bytes: the most that an engine may need beside its weights. public_key: that the
    bundle must be signed with.
    Raises UsageError (no such target), BundleError (the bundle is not whole), ExportError: TensorRT is missing and how to get it,
    a target is not this device, TensorRT refused a graph, or memory or disk do not suffice. Engines that were there before stay.

    On a car `engines_from_bundle(bundle)` is all; a target by name, here compiled without a GPU:

        >>> rows = engines_from_bundle(bundle, targets=["rtx-sm86"])
        >>> [row.engine for row in rows]
        ['rtx-sm86/vision', 'rtx-sm86/decoder']
        >>> sorted(path.name for path in (bundle / "engines" / "rtx-sm86").iterdir())
        ['decoder.engine', 'engine.json', 'engine.sha256', 'vision.engine']
    """
    bundle, say = Path(bundle), on_line or _say_nothing
    verified = read_bundle(bundle, public_key=public_key)
    digest, sources = verified.digest, engine_sources(verified, limits)
    del verified  # the embedding's bytes; a Jetson's GPU shares its memory
    for line in ("the same by hand:", *engine_commands(sources, bundle)):
        say(line)
    if (bundle / ENGINES_DIR).is_symlink():
        raise BundleError(f"{bundle}: {ENGINES_DIR} is a link; engines are written inside the bundle. Take it out")
    rows = []
    for api, platform, driver in [_target(name, bundle, digest) for name in targets or [""]]:
        build = _Build(bundle, digest, sources, api, platform, driver, workspace_bytes, say)
        rows += build.run()
    return rows


def compile_ahead(
    bundle: Path,
    *,
    targets: Sequence[int] = AHEAD_OF_TIME,
    on_line: OnLine | None = None,
    limits: Limits | None = None,
) -> list[EngineRow]:
    """Compile vision and decoder with TensorRT-RTX for GPUs that are not here: real hardware rules, nothing is run.

    targets: compute capabilities, 86 = SM 8.6. Raises as engines_from_bundle does.

        >>> [row.engine for row in compile_ahead(bundle, targets=(89,))]
        ['rtx-sm89/vision', 'rtx-sm89/decoder']
    """
    return engines_from_bundle(bundle, targets=[f"rtx-sm{number}" for number in targets], on_line=on_line, limits=limits)


def _say_nothing(line: str) -> None:
    pass


def _target(name: str, bundle: Path, digest: str) -> tuple[ModuleType, EnginePlatform, str]:
    """The module, what it builds for, and the driver. name: "" = the GPU here."""
    if name and not TARGET.fullmatch(name):
        raise UsageError(f"target {name!r} is unknown; expected sm<NN> (TensorRT, this device) or rtx-sm<NN> (TensorRT-RTX)")
    start = f"{bundle}: the ONNX bundle {digest[:19]} is complete, but no engine was built"
    if name.startswith("rtx-"):
        return _ahead_target(name, start)
    if importlib.util.find_spec(TENSORRT) is None:
        raise ExportError(f"{start}: TensorRT is not installed. {_how_to_get_it(bundle)}")
    api, device = load_api(TENSORRT), this_device()
    if device is None:
        raise ExportError(f"{start}: TensorRT {api.__version__} is here, but no NVIDIA GPU or no driver answers (nvidia-smi)")
    platform = engine_platform(TENSORRT, api.__version__, device.capability, device.name)
    if name not in ("", platform.target):
        raise ExportError(f"{start}: {name} is not this device, which is {platform.target} ({device.name}). Build it there")
    return api, platform, device.driver


def _ahead_target(name: str, start: str) -> tuple[ModuleType, EnginePlatform, str]:
    if importlib.util.find_spec(TENSORRT_RTX) is None:
        raise ExportError(f"{start}: TensorRT-RTX is not installed. pip install 'drivekd[rtx]'")
    api, capability = load_api(TENSORRT_RTX), int(name.removeprefix("rtx-sm"))
    ahead_capability(api, capability)
    return api, engine_platform(TENSORRT_RTX, api.__version__, capability, ""), ""


def _how_to_get_it(bundle: Path) -> str:
    return (
        "On a Jetson (JetPack 6.1 or newer): sudo apt install tensorrt python3-libnvinfer, and a venv with "
        "--system-site-packages. On x86: pip install --extra-index-url https://pypi.nvidia.com 'drivekd[trt]'. "
        f"Then: drivekd export {bundle} --trt. Until then it runs on onnxruntime: drivekd run {bundle}"
    )


@dataclass(frozen=True)
class _Build:
    """One target of one bundle."""

    bundle: Path
    digest: str
    sources: Sequence[EngineSource]
    api: ModuleType
    platform: EnginePlatform
    driver: str
    workspace_bytes: int
    say: OnLine

    def run(self) -> list[EngineRow]:
        target = self.bundle / ENGINES_DIR / self.platform.target
        cache = self._old_timing_cache()
        needed = sum(source.num_bytes + len(source.weights or b"") for source in self.sources)
        entries: dict[str, EngineEntry] = {}
        with whole_directory(target, needed_bytes=needed, error_type=ExportError) as staging:
            for source in self.sources:
                built = self._build(source, staging, cache)
                cache = built.timing_cache
                entries[source.engine] = _entry(source, built)
                (staging / engine_file(source.engine)).write_bytes(built.data)
            self._write_record(staging, entries, cache)
        name = self.platform.target
        return [EngineRow(f"{name}/{e}", v.file.bytes, v.seconds, v.peak_memory_bytes) for e, v in entries.items()]

    def _build(self, source: EngineSource, staging: Path, cache: bytes) -> BuiltEngine:
        self.say(memory_line(source, free_memory()))
        ahead = self.platform.capability if self.platform.builder == TENSORRT_RTX else None
        settings = BuildSettings(ahead, self.workspace_bytes)
        built = build_engine(self.api, source, settings, folder=staging, timing_cache=cache, on_line=self.say)
        self.say(f"{source.engine}: {len(built.data) / 1e6:,.1f} MB in {built.seconds:.1f} s")
        return built

    def _old_timing_cache(self) -> bytes:
        """Of the engines that will be replaced, when they are whole; what was measured stays true for a new bundle."""
        if self.platform.builder == TENSORRT_RTX or not (self.bundle / ENGINES_DIR / self.platform.target).exists():
            return b""
        try:
            return read_engines(self.bundle, self.platform.target).files.get(TIMING_CACHE_FILE, b"")
        except BundleError as error:
            self.say(f"the old timing cache is not used: {error}")
            return b""

    def _write_record(self, staging: Path, entries: dict[str, EngineEntry], cache: bytes) -> None:
        if cache:
            (staging / TIMING_CACHE_FILE).write_bytes(cache)
        record = EngineRecord(
            record_version=RECORD_VERSION,
            drivekd_version=__version__,
            bundle=self.digest,
            platform=self.platform,
            driver=self.driver,
            engines=entries,
            timing_cache=_file_entry(cache) if cache else None,
        ).to_bytes()
        (staging / RECORD_FILE).write_bytes(record)
        (staging / RECORD_DIGEST_FILE).write_bytes(digest_line(hashlib.sha256(record).hexdigest()))


def _entry(source: EngineSource, built: BuiltEngine) -> EngineEntry:
    return EngineEntry(
        file=_file_entry(built.data),
        graph=source.graph,
        graph_sha256=hashlib.sha256(source.model).hexdigest(),
        precision=source.spec.precision,
        profiles={profile.name: dict(profile.shapes) for profile in source.profiles},
        seconds=round(built.seconds, 2),
        peak_memory_bytes=built.peak_memory_bytes,
    )


def _file_entry(data: bytes | memoryview) -> FileEntry:
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))
