"""The other end of an `EngineProcess`: one engine in a process of its own, which answers JSON lines with JSON lines.

Runs in the environment of the engine that it is asked for: the standard library and what that engine needs, no torch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.memory import memory_mb


class Loaded(Protocol):
    """packages: whose versions a figure depends on."""

    packages: tuple[str, ...]


EngineT = TypeVar("EngineT", bound=Loaded)


def work(
    description: str | None,
    engines: Collection[str],
    load: Callable[[str, Path, int], EngineT],
    serve: Callable[[EngineT], None],
) -> None:
    """Parse ENGINE FOLDER --threads N, `load` it, print what that took, then `serve` until stdin ends."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=engines)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    bare_mb, started_s = memory_mb()["rss_mb"], time.perf_counter()
    engine = load(arguments.engine, arguments.folder, arguments.threads)
    versions = {name: version(name) for name in engine.packages}
    loaded = {"load_s": time.perf_counter() - started_s, "bare_mb": bare_mb, "versions": versions, **memory_mb()}
    print(json.dumps(loaded), flush=True)
    serve(engine)
