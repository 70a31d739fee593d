"""What a figure was measured on, how its rows are kept, and what a process of its own took."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def about(threads: int) -> dict[str, Any]:
    """Date, machine, its load at this moment and the threads that were asked for: what every row of JSON has."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "load": os.getloadavg()[0],
        "threads": threads,
    }


def print_about(machine: Mapping[str, Any]) -> None:
    """The line above a table. machine: of `about`."""
    print(f"{machine['date']}  {machine['machine']}  {machine['threads']} threads  load {machine['load']:.1f}")


def write_rows(rows: Iterable[Mapping[str, Any]], out: Path | None) -> str:
    """One JSON line a row, appended to `out` where one is given. Returns the lines, for benchmarks that print them, too."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(lines)
    return lines


def processor() -> str:
    """The CPU's name as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(threads: int) -> dict[str, str]:
    """One pool of the asked size whose idle threads sleep."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Taken:
    """By a process that ended well. cpu_s: of all its threads and children. peak_rss_mb: its largest resident set."""

    seconds: float
    cpu_s: float
    peak_rss_mb: float
    stdout: str


def run_measured(command: Sequence[str], threads: int) -> Taken:
    """Run to the end; its stderr goes to ours. Exits when the command fails.

    Call it from a small process: Linux counts the caller's resident set at the fork as the child's.
    """
    started_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(threads), encoding="utf-8") as child:
        assert child.stdout is not None
        stdout = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        print(stdout, file=sys.stderr)
        raise SystemExit(f"{' '.join(command)}: ended with status {child.returncode}; its messages are above")
    return Taken(time.perf_counter() - started_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, stdout)
