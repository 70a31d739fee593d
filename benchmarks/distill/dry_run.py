"""`drivekd train --dry-run` against the run that it plans: predicted seconds and bytes, measured ones, and their ratio.

    python -m benchmarks.distill.dry_run --work DIR                           # a tiny pair, several settings, about five minutes
    python -m benchmarks.distill.dry_run --work DIR --repeats 3 --out table.jsonl

Models and records are `step.py`'s (random weights). Dry run and run share one process, the dry run first, as a person
would do it; a model is loaded and a step done before both, so that neither pays for imports. Seconds are of the whole `train`
call, from reading records to final/. Bytes are of the cache and of the run directory, which is predicted at its fullest.

Where others use the machine, the wall's seconds differ between any two minutes by more than what is tested: `--clock cpu` counts
this process's own seconds in dry run and run alike (one thread, so that both clocks agree on a quiet machine).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from unittest.mock import patch

import torch
import yaml

from benchmarks.distill.models import SIZES, Recipe
from benchmarks.distill.records import make_benchmark
from drivekd.config import RunConfig, load_config
from drivekd.distill.dry_run.plan import Plan, dry_run
from drivekd.distill.training.train import read_training_samples, train
from drivekd.distill.training.trainer import Trainer
from drivekd.files import versions
from drivekd.tables import print_table

SETTINGS: dict[str, list[str]] = {
    "live, routed": ["cache.directory=null"],
    "live, mixed": ["cache.directory=null", "signals.mixing=released"],
    "cached, routed": [],
    "cached, packed": ["training.packing=frame", "data.train=[{folder}/frames.json]", "training.max_pack_tokens=512"],
    "cached, filled first": ["cache.fill_first=true"],
    "vision trains": ["cache.directory=null", "student.train=[vision_encoder, projector, language_model]"],
    "fine-tuning": ["cache.directory=null", "teachers={{}}"],
}
TOLERANCE = 0.15  # the issue's


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    folder = _folder(arguments.work, arguments.size, arguments.records)
    names = arguments.settings or list(SETTINGS)
    _warm_up(_config(folder, names[0], arguments))
    found = [_measured(folder, name, arguments) for _ in range(arguments.repeats) for name in names]
    rows = [_row(name, [one for one in found if one["settings"] == name]) for name in names]
    print_table(f"dry run against run, {arguments.size} pair, {arguments.steps} steps", HEADER, rows)
    if arguments.out is not None:
        head = {"time": datetime.now(timezone.utc).isoformat(), "versions": versions(), "arguments": {**vars(arguments)}}
        arguments.out.write_text("".join(json.dumps(one, default=str) + "\n" for one in [head, *found]), encoding="utf-8")
    ratios = {name: [float(str(one["ratio"])) for one in found if one["settings"] == name] for name in names}
    inside = sum(abs(statistics.median(some) - 1) <= TOLERANCE for some in ratios.values())
    every = [ratio for some in ratios.values() for ratio in some]
    print(f"median within {TOLERANCE:.0%}: {inside} of {len(names)} settings; single ratios {min(every):.3f} to {max(every):.3f}")
    return 0 if inside == len(names) else 1


HEADER = ["settings", "predicted s", "range", "measured s", "ratio", "disk predicted/written", "load"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where models, records and runs are put")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: this process's seconds on a busy machine")
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, help="JSON lines: this machine, then every run")
    return parser.parse_args()


def _folder(work: Path, size: str, records: int) -> Path:
    return Path(make_benchmark(work, Recipe(size=SIZES[size], seed=0, num_records=records)).path)


def _config(folder: Path, name: str, arguments: argparse.Namespace) -> RunConfig:
    tree = {
        "student": {"checkpoint": str(folder / "student")},
        "teachers": {kind: str(folder / f"teacher-{kind}") for kind in ("perception", "reasoning", "planning")},
        "data": {"train": [str(folder / "records.json")], "validation": str(folder / "records.json")},
        "cache": {"directory": str(folder / "dry-run-cache")},
        "training": {
            **{"steps": arguments.steps, "batch_size": 8, "micro_batch_size": 2, "threads": arguments.threads, "device": "cpu"},
            **{"checkpoint_every_steps": max(1, arguments.steps // 3), "validate_every_steps": max(1, arguments.steps // 2)},
        },
    }
    path = folder / "dry-run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_config(path, [text.format(folder=folder) for text in SETTINGS[name]])


def _warm_up(config: RunConfig) -> None:
    trainer = Trainer(
        config.model_copy(update={"cache": config.cache.model_copy(update={"directory": None})}), read_training_samples(config)
    )
    trainer.step()


def _measured(folder: Path, name: str, arguments: argparse.Namespace) -> dict[str, object]:
    config, out = _config(folder, name, arguments), folder / "dry-run-out"
    for left in (out, folder / "dry-run-cache"):
        shutil.rmtree(left, ignore_errors=True)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    with patch("time.perf_counter", clock):
        started_s = clock()
        plan = dry_run(config, out)
        planned_s = clock() - started_s
        assert not out.exists() and not (folder / "dry-run-cache").exists()
        started_s = clock()
        train(config, out)
        seconds = clock() - started_s
    return _result(name, plan, seconds, planned_s, out, folder / "dry-run-cache")


def _result(name: str, plan: Plan, seconds: float, planned_s: float, out: Path, cache: Path) -> dict[str, object]:
    assert plan.times is not None and plan.disk is not None
    return {
        "settings": name,
        "predicted_s": plan.times.total,
        "low_s": plan.times.low,
        "high_s": plan.times.high,
        "measured_s": seconds,
        "ratio": plan.times.total / seconds,
        "dry_run_s": planned_s,
        "by_part_s": plan.times.by_part,
        "cache_predicted_bytes": plan.disk.cache.total,
        "cache_bytes": _bytes_in(cache),
        "run_predicted_bytes": plan.disk.run,
        "run_bytes": _bytes_in(out),
        "load": os.getloadavg()[0],
    }


def _row(name: str, found: Sequence[dict[str, object]]) -> list[str]:
    def middle(key: str) -> float:
        return statistics.median(float(str(one[key])) for one in found)

    ratios = " ".join(f"{float(str(one['ratio'])):.3f}" for one in found)
    written = middle("cache_bytes") + middle("run_bytes")
    disk = (middle("cache_predicted_bytes") + middle("run_predicted_bytes")) / written
    times = [f"{middle('predicted_s'):.1f}", f"{middle('low_s'):.1f} to {middle('high_s'):.1f}", f"{middle('measured_s'):.1f}"]
    return [name, *times, ratios, f"{disk:.2f}", f"{middle('load'):.1f}"]


def _bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(main())
