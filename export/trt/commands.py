"""The same engines with NVIDIA's own tools: command lines of trtexec and polygraphy for those who prefer them.

Neither verifies the bundle, records what it built, nor keeps a half-written file from the engine's place.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from drivekd.runtime.bundle.engine_record import engine_file

from .profiles import Dims, Profile
from .sources import WORKSPACE_BYTES, EngineSource

BOUNDS = ("min", "opt", "max")


def trtexec_command(source: EngineSource, bundle: Path, *, workspace_bytes: int = WORKSPACE_BYTES) -> str:
    """One line for TensorRT's trtexec 10.3 or newer. Written from its documentation, not run."""
    words = [
        "trtexec",
        f"--onnx={bundle / source.spec.file}",
        f"--saveEngine={engine_file(source.engine)}",
        "--stronglyTyped",
        f"--memPoolSize=workspace:{workspace_bytes >> 20}M",
        "--timingCacheFile=timing.cache",
        "--skipInference",
    ]
    for index, profile in enumerate(source.profiles):
        words += [f"--profile={index}"] if len(source.profiles) > 1 else []
        words += [f"--{bound}Shapes={','.join(_shapes(profile, at, 'x', ''))}" for at, bound in enumerate(BOUNDS)]
    return shlex.join(words)


def polygraphy_command(source: EngineSource, bundle: Path, *, workspace_bytes: int = WORKSPACE_BYTES) -> str:
    """One line for polygraphy; with POLYGRAPHY_USE_TENSORRT_RTX=1 before it, it compiles with TensorRT-RTX."""
    words = ["polygraphy", "convert", str(bundle / source.spec.file), "--convert-to", "trt", "--strongly-typed"]
    words += ["--pool-limit", f"workspace:{workspace_bytes >> 20}M"]
    for profile in source.profiles:
        for at, bound in enumerate(BOUNDS):
            words += [f"--trt-{bound}-shapes", *_shapes(profile, at, ",", "[]")]
    return shlex.join([*words, "-o", engine_file(source.engine)])


def engine_commands(sources: Sequence[EngineSource], bundle: Path) -> list[str]:
    """Both tools, every engine."""
    return [command(source, bundle) for command in (trtexec_command, polygraphy_command) for source in sources]


def _shapes(profile: Profile, at: int, separator: str, brackets: str) -> list[str]:
    return [f"{name}:{_text(shapes[at], separator, brackets)}" for name, shapes in profile.shapes.items()]


def _text(dims: Dims, separator: str, brackets: str) -> str:
    return brackets[:1] + separator.join(map(str, dims)) + brackets[1:]
