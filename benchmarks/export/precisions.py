"""Accuracy of one checkpoint's bundles in every precision, beside the checkpoint's own, on one file of labelled records.

    python -m benchmarks.export.precisions out/demo/distilled/final --calibration out/demo/world/train.json \\
        --evaluation out/demo/world/test.json [--trained RUN/final]

--trained: a checkpoint of the same student, trained for int4 (student.quantization). "to the nearest" is an export without
records; the others round on them. "same" is how often the next token of answers that nothing was rounded on is the fp32 graphs'.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from drivekd.export import bundle_from_checkpoint
from drivekd.export.bundle import ExportReport
from drivekd.export.settings import plan_from_options
from drivekd.files import versions
from drivekd.runtime import read_bundle


@dataclass(frozen=True)
class Variant:
    """trained: of the checkpoint that was trained for it."""

    precision: str
    settings: tuple[str, ...] = ()
    by_data: bool = True
    trained: bool = False


VARIANTS = {
    "fp32": Variant("fp32"),
    "fp16": Variant("fp16"),
    "int8": Variant("int8"),
    "int4, to the nearest": Variant("int4", by_data=False),
    "int4": Variant("int4"),
    "int4, bits=5": Variant("int4", ("bits=5",)),
    "int4, trained for it": Variant("int4", trained=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--trained", type=Path)
    arguments = parser.parse_args()
    found = versions()
    print(f"{date.today()}, {platform.machine()}, onnxruntime {found['onnxruntime']}, torch {found['torch']}\n")
    print("| bundle | MB | bits | " + " | ".join(("all", "perception", "reasoning", "planning", "same")) + " |")
    print("| --- | ---: | ---: | --- | --- | --- | --- | ---: |")
    for number, (name, variant) in enumerate(VARIANTS.items()):
        if variant.trained and arguments.trained is None:
            continue
        report, size_mb, bits = _export(arguments, variant)
        rows = report.accuracy
        if not number:
            before = " | ".join(_cell(row.checkpoint, *row.checkpoint_interval) for row in rows)
            print(f"| the checkpoint | | | {before} | |", flush=True)
        after = " | ".join(_cell(row.bundle, *row.bundle_interval) for row in rows)
        same = f"{report.language[0].agreement:.1%}" if report.language else ""
        print(f"| {name} | {size_mb:.1f} | {bits or ''} | {after} | {same} |", flush=True)


def _export(arguments: argparse.Namespace, variant: Variant) -> tuple[ExportReport, float, float]:
    """The report, megabytes, and bits of a decoder's weight, of a bundle that is thrown away."""
    settings = [f"evaluation={arguments.evaluation}", *variant.settings]
    if variant.by_data:
        settings.append(f"calibration={arguments.calibration}")
    with tempfile.TemporaryDirectory() as folder:
        bundle, checkpoint = Path(folder) / "bundle", arguments.trained if variant.trained else arguments.checkpoint
        report = bundle_from_checkpoint(checkpoint, bundle, plan=plan_from_options(variant.precision, settings))
        size_mb = sum(path.stat().st_size for path in bundle.iterdir()) / 1e6
        return report, size_mb, read_bundle(bundle).manifest.graphs["decoder.gqa"].bits


def _cell(accuracy: float, lower: float, upper: float) -> str:
    return f"{accuracy:.3f} [{lower:.3f}, {upper:.3f}]"


if __name__ == "__main__":
    main()
