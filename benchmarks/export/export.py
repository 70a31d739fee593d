"""Seconds, memory, size and parity of `drivekd export` on published shapes with random weights.

    python -m benchmarks.export.export --work DIR --size internvl3-1b --precision fp32,fp16,int4 --rtx
    python -m benchmarks.export.export --work DIR --size qwen2.5-vl-3b-widths --precision fp32,int4 --rtx
    python -m benchmarks.export.export --work DIR --size small                           # under a minute

The checkpoint is made once (models.py). Each export is a process of its own, from loading weights to the last check of
the bundle: parity is in its seconds. Its stages are timed where bundle.py calls them; what lies between them is "rest". Peak
memory is the largest resident set, mapped files included. --rtx then compiles vision and decoder ahead of time with
TensorRT-RTX, in another process: nothing is run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import Taken, about, print_about, run_measured, write_rows
from benchmarks.memory import memory_mb, restart_peak
from drivekd.tables import print_table

HEADER = ["precision", "seconds", "CPU s", "peak RSS, GB", "bundle, MB", "worst parity row", "error", "limit"]
ENGINE_HEADER = ["precision", "engine", "MB", "built in, s", "peak RSS, GB"]
SIZES = ("internvl3-1b", "qwen2.5-vl-3b-widths", "small")  # models.py's names; that imports torch, which this process does not
STAGES = (  # functions that drivekd.export.bundle calls, in order
    *(
        "load_source",
        "take_reference",
        "record_layers",
        "write_graphs",
        "rounded_weights",
        "calibrate",
        "convert",
        "share_weights",
    ),
    *("share_weights", "quantize_embedding", "write_manifest", "read_bundle", "measure_parity", "record_golden", "check_bundle"),
)


def main() -> int:
    arguments = _arguments()
    if arguments.child is not None:
        print(json.dumps({"export": _export, "compile": _compile}[arguments.child](arguments)))
        return 0
    arguments.work.mkdir(parents=True, exist_ok=True)
    models = [sys.executable, "-m", "benchmarks.export.models", "--work", str(arguments.work), "--size", arguments.size]
    run_measured(models, arguments.threads)
    rows, engines = [], []
    for precision in arguments.precision:
        rows.append(_export_row(precision, arguments))
        if arguments.rtx:
            engines += _engine_rows(precision, arguments)
    _report(rows, engines, arguments)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for checkpoint and bundles; 10 GB for internvl3-1b")
    add("--size", choices=SIZES, default="internvl3-1b")
    add("--precision", type=lambda text: text.split(","), default=["int4"], help="comma-separated; one bundle each")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as of drivekd export: vision=fp16, block=128 ...")
    add("--rtx", action="store_true", help="compile each bundle with TensorRT-RTX")
    add("--targets", type=lambda text: [int(part) for part in text.split(",")], default=[86, 89], help="of --rtx")
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="append one JSON line a row")
    add("--child", choices=["export", "compile"], help=argparse.SUPPRESS)
    return parser.parse_args()


# --- the parent -------------------------------------------------------------------------------------------------------


def _bundle(precision: str, arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.work / f"bundle-{arguments.size}-{precision}"
    return folder


def _run_child(kind: str, precision: str, arguments: argparse.Namespace) -> tuple[Taken, dict[str, Any]]:
    kept = ("work", "size", "threads")
    flags = [part for key in kept for part in (f"--{key}", str(getattr(arguments, key)))]
    flags += ["--targets", ",".join(map(str, arguments.targets)), *(f"--set={setting}" for setting in arguments.set)]
    command = [sys.executable, "-m", "benchmarks.export.export", *flags, "--precision", precision, "--child", kind]
    taken = run_measured(command, arguments.threads)
    found: dict[str, Any] = json.loads(taken.stdout.splitlines()[-1])
    return taken, found


def _export_row(precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    bundle = _bundle(precision, arguments)
    shutil.rmtree(bundle, ignore_errors=True)  # an earlier run's
    taken, found = _run_child("export", precision, arguments)
    files = {path.name: path.stat().st_size for path in sorted(bundle.iterdir()) if path.is_file()}
    worst = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["parity"][0]
    row = {
        "size": arguments.size,
        "precision": precision,
        "seconds": taken.seconds,
        "cpu_s": taken.cpu_s,
        "bundle_bytes": sum(files.values()),
        "files": files,
        "worst_parity": worst,
        **found,
    }
    print(f"{precision}: {taken.seconds:.0f} s, {found['peak_rss_mb'] / 1024:.1f} GB", file=sys.stderr)
    return row


def _engine_rows(precision: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    taken, found = _run_child("compile", precision, arguments)
    process = {"size": arguments.size, "precision": precision, "process_s": taken.seconds, "process_peak_mb": taken.peak_rss_mb}
    return [{**process, **row} for row in found["engines"]]


def _report(rows: list[dict[str, Any]], engines: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    machine = about(arguments.threads)
    versions = rows[0]["versions"]
    print_about(machine)
    print(json.dumps(versions))
    print_table(f"drivekd export, {arguments.size}", HEADER, [_cells(row) for row in rows])
    for row in rows:
        stages = [[name, f"{found['seconds']:.1f}", f"{found['peak_mb'] / 1024:.1f}"] for name, found in row["stages"].items()]
        print_table(f"{row['precision']}: stages", ["stage", "seconds", "peak RSS, GB"], stages)
        print_table(f"{row['precision']}: files", ["file", "MB"], [[name, f"{n / 1e6:.1f}"] for name, n in row["files"].items()])
    if engines:
        print_table("compiled ahead of time with TensorRT-RTX", ENGINE_HEADER, [_engine_cells(row) for row in engines])
    print(write_rows((row | machine for row in [*rows, *engines]), arguments.out), end="")


def _cells(row: dict[str, Any]) -> list[str]:
    worst = row["worst_parity"]
    where = ", ".join(str(worst[key]) for key in ("graph", "precision", "case", "output") if key in worst)
    numbers = [
        f"{row['seconds']:.0f}",
        f"{row['cpu_s']:.0f}",
        f"{row['peak_rss_mb'] / 1024:.2f}",
        f"{row['bundle_bytes'] / 1e6:,.0f}",
    ]
    return [row["precision"], *numbers, where, f"{worst['max_abs']:.1e}", f"{worst['limit']:.1e}"]


def _engine_cells(row: dict[str, Any]) -> list[str]:
    built = [f"{row['bytes'] / 1e6:,.0f}", f"{row['seconds']:.1f}", f"{row['peak_memory_bytes'] / 2**30:.2f}"]
    return [row["precision"], row["engine"], *built]


# --- the child --------------------------------------------------------------------------------------------------------


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from drivekd.export import bundle
    from drivekd.export.settings import plan_from_options
    from drivekd.files import versions

    torch.set_num_threads(arguments.threads)
    stages = {"rest": {"seconds": 0.0, "peak_mb": 0.0}}
    for name in STAGES:
        setattr(bundle, name, _timed(name, getattr(bundle, name), stages))
    (precision,) = arguments.precision
    plan = plan_from_options(precision, [f"calibration={_calibration_records(arguments.work)}", *arguments.set])
    started_s = time.perf_counter()
    try:
        bundle.bundle_from_checkpoint(arguments.work / arguments.size, _bundle(precision, arguments), plan=plan)
    finally:
        print(json.dumps(stages), file=sys.stderr)  # where it was, should it fail
    total_s = time.perf_counter() - started_s
    _new_peak(stages["rest"])
    stages["rest"]["seconds"] = total_s - sum(found["seconds"] for found in stages.values())
    peak_mb = max(found["peak_mb"] for found in stages.values())
    return {"export_s": total_s, "peak_rss_mb": peak_mb, "stages": stages, "versions": versions()}


def _timed(name: str, call: Callable[..., Any], stages: dict[str, dict[str, float]]) -> Callable[..., Any]:
    """`call`, which adds its seconds and its own peak to its stage; what lies between is "rest"."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        _new_peak(stages["rest"])
        started_s = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            stage = stages.setdefault(name, {"seconds": 0.0, "peak_mb": 0.0})
            stage["seconds"] += time.perf_counter() - started_s
            _new_peak(stage)

    return timed


def _calibration_records(work: Path) -> Path:
    """Records with pictures of camera size: coloured patches under noise. Ranges of random weights need no street."""
    import numpy as np
    from PIL import Image

    records = []
    for number in range(4):
        rng = np.random.default_rng(number)
        patches = np.kron(rng.integers(0, 255, (9, 16, 3)), np.ones((50, 50, 1)))
        noisy = np.clip(patches + rng.normal(0, 20, patches.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(work / f"camera-{number}.jpg")
        turns = [{"role": "user", "content": "<image>What is safe here?"}, {"role": "assistant", "content": "Brake gently."}]
        records.append({"messages": turns, "images": [f"camera-{number}.jpg"], "question_type": "planning"})
    (work / "calibration.json").write_text(json.dumps(records), encoding="utf-8")
    return work / "calibration.json"


def _compile(arguments: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from drivekd.export.trt.engines import compile_ahead

    (precision,) = arguments.precision
    rows = compile_ahead(
        _bundle(precision, arguments), targets=arguments.targets, on_line=lambda line: print(line, file=sys.stderr)
    )
    return {"engines": [asdict(row) for row in rows]}


def _new_peak(stage: dict[str, float]) -> None:
    """The highest resident set since the last call becomes the stage's, when it is higher than what that had."""
    stage["peak_mb"] = max(stage["peak_mb"], memory_mb()["peak_mb"])
    restart_peak()


if __name__ == "__main__":
    raise SystemExit(main())
