"""Start of a session: verify, load, parity gate; and the memory it takes, each stage by itself.

    python -m benchmarks.runtime.start --bundle DIR/bundle-internvl3-1b-int4 --cameras 6 --out FILE

Every repeat is two processes: the first finds no stored verdict of the gate and replays the recorded run, the second finds it.
A stage's peak is the largest resident set while it ran (the kernel's mark is set back before each). "beyond the interpreter" is
measured from Python itself, before any import of ours. "frame" answers one frame of --cameras images, a few tokens long. The
bundle's files are in the page cache unless the machine was just started; the first repeat shows which.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.memory import memory_mb, restart_peak

T = TypeVar("T")
STAGES = ("import", "verify", "load", "gate", "frame")
START = STAGES[1:4]
TOKENS = 4


class Stages:
    """What each stage took, in order."""

    def __init__(self) -> None:
        self.bare_mb = memory_mb()["rss_mb"]
        self.rows: dict[str, dict[str, float]] = {}

    def run(self, name: str, work: Callable[[], T]) -> T:
        restart_peak()
        started_s, cpu_started_s = time.perf_counter(), time.process_time()
        found = work()
        seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_started_s
        self.rows[name] = {"seconds": seconds, "cpu_s": cpu_s, **memory_mb()}
        return found


def child(bundle: Path, threads: int, cameras: int, verdicts: Path) -> None:
    """Start as load_bundle does, stage by stage, and print what it took."""
    stages = Stages()
    stages.run("import", lambda: importlib.import_module("drivekd.runtime"))
    from drivekd.runtime.bundle.reader import read_bundle
    from drivekd.runtime.parity.gate import pass_gate
    from drivekd.runtime.parity.golden import GOLDEN_FILE
    from drivekd.runtime.session.session import Session

    read = stages.run("verify", lambda: read_bundle(bundle, defer=True))
    golden = read.files[GOLDEN_FILE]
    session = stages.run("load", lambda: Session(read, threads=threads))
    replay = stages.run("gate", lambda: pass_gate(session.model, golden, bundle, folder=verdicts))
    golden = b""  # a session keeps none of it
    if cameras:
        stages.run("frame", lambda: _answer(session, cameras))
    print(json.dumps({"bare_mb": stages.bare_mb, "passed": replay.passed, "stages": stages.rows}))


def _answer(session: Any, cameras: int) -> None:
    from drivekd.runtime.parity.golden import golden_images

    tiles = golden_images(session.manifest.images.tile_px, cameras)
    session.answer(dict(zip(session.cameras or tiles, tiles.values(), strict=False)), max_new_tokens=TOKENS)


def main() -> int:
    arguments = _arguments()
    if arguments.child is not None:
        child(arguments.bundle, arguments.threads, arguments.cameras, arguments.child)
        return 0
    found: dict[str, list[dict[str, Any]]] = {"replayed": [], "stored": []}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as verdicts:
            for kind in found:
                found[kind].append(_started(arguments, verdicts))
    _report(found, arguments)
    return 0


def _started(arguments: argparse.Namespace, verdicts: str) -> dict[str, Any]:
    from benchmarks.machine import run_measured

    command = [sys.executable, "-m", "benchmarks.runtime.start", "--bundle", str(arguments.bundle), "--child", verdicts]
    command += ["--threads", str(arguments.threads), "--cameras", str(arguments.cameras)]
    result: dict[str, Any] = json.loads(run_measured(command, arguments.threads).stdout)
    return result


def _report(found: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> None:
    from benchmarks.machine import about, write_rows
    from drivekd.tables import print_table

    rows = [row for kind, runs in found.items() for row in _rows(kind, runs)]
    header = ["gate", "stage", "s median", "min - max", "CPU s", "RSS, MB", "peak, MB beyond the interpreter"]
    title = f"{arguments.bundle.name}, {arguments.threads} threads"
    print_table(title, header, [_cells(row) for row in rows])
    machine = about(arguments.threads) | {"bundle": arguments.bundle.name}
    write_rows((machine | row for row in rows), arguments.out)


def _rows(kind: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a stage, and one of the whole start."""
    names = [name for name in STAGES if name in runs[0]["stages"]]
    return [_row(kind, name, runs, (name,)) for name in names] + [_row(kind, "start", runs, START)]


def _row(kind: str, name: str, runs: list[dict[str, Any]], parts: tuple[str, ...]) -> dict[str, Any]:
    stages = [[run["stages"][part] for part in parts] for run in runs]
    seconds = [sum(stage["seconds"] for stage in run) for run in stages]
    return {
        "gate": kind,
        "stage": name,
        "seconds": seconds,
        "cpu_s": statistics.median(sum(stage["cpu_s"] for stage in run) for run in stages),
        "rss_mb": max(run[-1]["rss_mb"] for run in stages),
        "peak_beyond_mb": max(
            max(stage["peak_mb"] for stage in run) - start["bare_mb"] for run, start in zip(stages, runs, strict=True)
        ),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    spread = f"{min(seconds):.2f} - {max(seconds):.2f}"
    numbers = [f"{row['cpu_s']:.2f}", f"{row['rss_mb']:,.0f}", f"{row['peak_beyond_mb']:,.0f}"]
    return [row["gate"], row["stage"], f"{statistics.median(seconds):.2f}", spread, *numbers]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cameras", type=int, default=1, help="images of the frame behind the start; 0 = none")
    parser.add_argument("--out", type=Path, help="append one JSON line a row")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # folder of the verdicts: this process is measured
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
