"""Seconds and memory of one optimizer step: the paper's released algorithm against `drivekd train`, on a CPU.

    python -m benchmarks.distill.step --work DIR --size small                             # minutes; every variant once
    python -m benchmarks.distill.step --work DIR --size real --repeats 3 --out table.jsonl
    python -m benchmarks.distill.step --work DIR --size small --agreement                 # gradients instead of speed

Every run of a variant is a process of its own, on the same models, records, seeds and trainable parameters; repeats are
interleaved, so that a slow minute of the machine hits all variants alike. A run does one warm-up step, which also fills caches,
and then timed steps. The table shows the median and, as spread, the smallest and largest time. CPU seconds, summed over threads,
tell a slow variant from a busy machine: on a quiet one they are near the seconds on the clock times the threads.

Memory is the peak resident set of warm-up and timed steps, less what the process held before loading, less the weights of all
loaded models: gradients, optimizer state, activations and buffers. All weights are read once before measuring starts, so that
memory-mapped ones count in full.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from benchmarks.distill.agreement import TOLERANCE, agreement
from benchmarks.distill.models import SIZES, BenchmarkFolder, Recipe
from benchmarks.distill.records import make_benchmark
from benchmarks.distill.variants import MIXINGS, VARIANTS, Step, make_step
from benchmarks.machine import about, environment, print_about, write_rows
from benchmarks.memory import memory_mb, restart_peak
from drivekd.errors import ConfigError
from drivekd.files import versions

UNAVAILABLE = 3  # exit status of a process whose settings this version does not know


class Run(TypedDict):
    """What one process measured."""

    seconds: list[float]
    cpu_seconds: list[float]
    weights_mb: float
    loaded_mb: float
    peak_mb: float
    peak_above_weights_mb: float


def main() -> int:
    arguments = _arguments()
    if arguments.child:
        return _child(arguments)
    size = SIZES[arguments.size]
    recipe = Recipe(
        size=size.cut(arguments.layers) if arguments.layers else size,
        seed=arguments.seed,
        separate_vision=arguments.separate_vision,
        num_records=arguments.accumulation,
        drivelm=arguments.drivelm,
        questions=arguments.questions,
    )
    folder = make_benchmark(arguments.work, recipe)
    if arguments.agreement:
        return _agreement(folder, arguments.threads)
    runs = _interleaved(arguments)
    _report([_row(name, runs) for name in arguments.variants if runs[name]], arguments)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for models, records and caches; kept, and taken up again")
    add("--size", choices=SIZES, default="small")
    add("--layers", type=int, default=0, help="this many layers everywhere, to extrapolate from; 0 = the size's own")
    add("--variants", type=lambda text: text.split(","), default=list(VARIANTS), help="comma-separated names")
    add("--repeats", type=int, default=3, help="processes a variant")
    add("--steps", type=int, default=1, help="timed steps a process")
    add("--accumulation", type=int, default=3, help="records a step; 3 = one a capability (released: 4)")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--seed", type=int, default=0)
    add("--drivelm", type=Path, help="DriveLM file behind frames.json; made-up frames without it")
    add("--questions", type=int, default=0, help="questions kept of each frame; 0 = all of a DriveLM frame's")
    add("--separate-vision", action="store_true", help="teachers with vision towers of their own")
    add("--out", type=Path, help="append one JSON line a variant")
    add("--agreement", action="store_true", help="compare gradients with the baseline's instead of timing")
    add("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.variants if name not in VARIANTS]:
        parser.error(f"--variants: unknown {', '.join(unknown)}; known: {', '.join(VARIANTS)}")
    return arguments


def _agreement(folder: BenchmarkFolder, threads: int) -> int:
    """Print the errors; 1 when one exceeds the tolerance or is not a number."""
    torch.set_num_threads(threads)
    print("| mixing | row | relative error |\n| --- | --- | ---: |")
    errors = {(mixing, name): error for mixing in MIXINGS for name, error in agreement(folder, mixing).items()}
    for (mixing, name), error in errors.items():
        print(f"| {mixing} | {name} | {error:.1e} |")
    agree = all(error <= TOLERANCE for error in errors.values())
    print(f"\n{'all' if agree else 'NOT all'} within {TOLERANCE:.0e}, fp32")
    return int(not agree)


# --- the parent: processes and the table ------------------------------------------------------------------------------


def _interleaved(arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """Every variant's runs, in rounds; none for a variant whose settings this version does not know."""
    runs: dict[str, list[Run]] = {name: [] for name in arguments.variants}
    names = list(arguments.variants)
    for repeat in range(arguments.repeats):
        for name in list(names):
            run = _run_process(name, arguments)
            if run is None:
                names.remove(name)
                continue
            runs[name].append(run)
            print(f"{repeat + 1}/{arguments.repeats} {name}: {_short(*run['seconds'])} s", file=sys.stderr)
    return runs


def _run_process(name: str, arguments: argparse.Namespace) -> Run | None:
    kept = ("work", "threads", "steps")
    flags = [part for key in kept for part in (f"--{key}", str(getattr(arguments, key)))]
    command = [sys.executable, "-m", "benchmarks.distill.step", *flags, "--child", name]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env=environment(arguments.threads), encoding="utf-8"
    )
    if done.returncode == UNAVAILABLE:
        return None
    if done.returncode:
        raise SystemExit(f"{name}: its process ended with status {done.returncode}; its messages are above")
    run: Run = json.loads(done.stdout.splitlines()[-1])
    return run


def _row(name: str, runs: Mapping[str, Sequence[Run]]) -> dict[str, object]:
    seconds = [value for run in runs[name] for value in run["seconds"]]
    row: dict[str, object] = {
        "variant": name,
        "median_s": _median_s(runs[name]),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "cpu_median_s": statistics.median(value for run in runs[name] for value in run["cpu_seconds"]),
        "timed_steps": len(seconds),
        "weights_mb": runs[name][0]["weights_mb"],
        "loaded_mb": statistics.median(run["loaded_mb"] for run in runs[name]),
        "peak_mb": statistics.median(run["peak_mb"] for run in runs[name]),
        "peak_above_weights_mb": _memory_mb(runs[name]),
        "against": VARIANTS[name].against,
    }
    if reference := runs.get(VARIANTS[name].against):
        row["times_faster"] = _median_s(reference) / _median_s(runs[name])
        row["memory_share"] = _memory_mb(runs[name]) / _memory_mb(reference)
    return row


def _median_s(runs: Sequence[Run]) -> float:
    return statistics.median(value for run in runs for value in run["seconds"])


def _memory_mb(runs: Sequence[Run]) -> float:
    return statistics.median(run["peak_above_weights_mb"] for run in runs)


def _report(table: Sequence[Mapping[str, object]], arguments: argparse.Namespace) -> None:
    """The table for people on stdout, the lines for machines in --out."""
    asked = {key: getattr(arguments, key) for key in ("size", "layers", "accumulation", "repeats", "separate_vision")}
    machine = about(arguments.threads) | {"versions": versions(), **asked}
    print_about(machine)
    print(json.dumps(machine["versions"]))
    print(f"size {arguments.size}, {arguments.accumulation} records a step, {arguments.repeats} processes a variant\n")
    print("| variant | s a step | min - max | times faster | CPU s a step | above weights, MB | share | weights, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in table:
        spread = f"{_short(row['min_s'])} - {_short(row['max_s'])}"
        middle = [
            _short(row.get(key))
            for key in ("times_faster", "cpu_median_s", "peak_above_weights_mb", "memory_share", "weights_mb")
        ]
        print("| " + " | ".join((str(row["variant"]), _short(row["median_s"]), spread, *middle)) + " |")
    write_rows(({**row, **machine} for row in table), arguments.out)


def _short(*values: object) -> str:
    """Three significant digits; nothing for None."""
    return ", ".join(
        "" if value is None else f"{value:.3g}" if abs(float(str(value))) < 1000 else f"{value:,.0f}" for value in values
    )


# --- the child: one variant, one process ------------------------------------------------------------------------------


def _child(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(arguments.threads)
    before_mb = memory_mb()["rss_mb"]
    try:
        step = make_step(VARIANTS[arguments.child], BenchmarkFolder(arguments.work), arguments.threads)
    except ConfigError as error:
        print(f"{arguments.child}: not in this version: {error}", file=sys.stderr)
        return UNAVAILABLE
    print(json.dumps(_measure(step, arguments.steps, before_mb)))
    return 0


def _measure(step: Step, num_steps: int, before_mb: float) -> Run:
    weights_mb, loaded_mb = _read_weights_mb(), memory_mb()["rss_mb"]
    restart_peak()
    step()
    seconds, cpu_seconds = zip(*(_seconds(step) for _ in range(num_steps)), strict=True)
    peak_mb = memory_mb()["peak_mb"]
    return Run(
        seconds=list(seconds),
        cpu_seconds=list(cpu_seconds),
        weights_mb=weights_mb,
        loaded_mb=loaded_mb,
        peak_mb=peak_mb,
        peak_above_weights_mb=peak_mb - before_mb - weights_mb,
    )


def _seconds(step: Step) -> tuple[float, float]:
    """Of one step: on the clock, and of all this process's threads."""
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - started_s, time.process_time() - cpu_started_s


def _read_weights_mb() -> float:
    """Size of all distinct weights of all living models; each is read once, which brings memory-mapped ones in."""
    gc.collect()
    modules = [found for found in gc.get_objects() if issubclass(type(found), nn.Module)]
    found = {w.data_ptr(): w for m in modules for w in (*m.parameters(recurse=False), *m.buffers(recurse=False)) if w.numel()}
    for weight in found.values():
        weight.detach().sum()
    size_bytes: int = sum(weight.numel() * weight.element_size() for weight in found.values())
    return size_bytes / 2**20


if __name__ == "__main__":
    raise SystemExit(main())
