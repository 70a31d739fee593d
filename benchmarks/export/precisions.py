"""Accuracy of one checkpoint's bundles in every precision, beside the checkpoint's own, on one file of labelled records.

    python -m benchmarks.export.precisions out/demo/distilled/final --calibration out/demo/world/train.json \\
        --evaluation out/demo/world/test.json
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from datetime import date
from pathlib import Path

from drivekd.export import bundle_from_checkpoint
from drivekd.export.parity.accuracy import AccuracyRow
from drivekd.export.settings import plan_from_options
from drivekd.files import versions

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fp32": ("fp32", ()),
    "fp16": ("fp16", ()),
    "int8": ("int8", ()),
    "int4": ("int4", ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    arguments = parser.parse_args()
    found = versions()
    print(f"{date.today()}, {platform.machine()}, onnxruntime {found['onnxruntime']}, torch {found['torch']}\n")
    print("| bundle | MB | " + " | ".join(("all", "perception", "reasoning", "planning")) + " |")
    print("| --- | ---: | --- | --- | --- | --- |")
    for number, (name, (precision, settings)) in enumerate(VARIANTS.items()):
        rows, size_mb = _export(arguments, precision, settings)
        if not number:
            print("| the checkpoint | | " + " | ".join(_cell(row.checkpoint, *row.checkpoint_interval) for row in rows) + " |")
        print(f"| {name} | {size_mb:.1f} | " + " | ".join(_cell(row.bundle, *row.bundle_interval) for row in rows) + " |")


def _export(arguments: argparse.Namespace, precision: str, settings: tuple[str, ...]) -> tuple[tuple[AccuracyRow, ...], float]:
    """The accuracy table and the size of a bundle that is thrown away."""
    records = (f"calibration={arguments.calibration}", f"evaluation={arguments.evaluation}")
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        report = bundle_from_checkpoint(arguments.checkpoint, bundle, plan=plan_from_options(precision, (*records, *settings)))
        return report.accuracy, sum(path.stat().st_size for path in bundle.iterdir()) / 1e6


def _cell(accuracy: float, lower: float, upper: float) -> str:
    return f"{accuracy:.3f} [{lower:.3f}, {upper:.3f}]"


if __name__ == "__main__":
    main()
