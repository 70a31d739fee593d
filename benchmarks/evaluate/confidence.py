"""Calibration error of one model's answers before and after, as a mean over ten ways to deal scenes out to two halves.

    python -m benchmarks.evaluate.confidence out/demo/distilled/final --data out/demo/world/test.json

ECE: over 15 equal-mass bins, on the half that nothing was fitted on. "by chance": about what confidences would show that keep
exactly what they promise. Answers are asked once, and kept beside the records for another call when --answers is given.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

from drivekd.evaluate.confidence.calibrate import CalibrationRequest, calibrate
from drivekd.files import versions

SEEDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--answers", type=Path)
    arguments = parser.parse_args()
    print(f"{date.today()}, {platform.machine()}, torch {versions()['torch']}\n")
    print("| capability | reported on | accuracy | ECE before | ECE after | by chance | AURC |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        answers = arguments.answers or Path(folder)
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in range(SEEDS):
            request = CalibrationRequest(arguments.model, arguments.data, answers=answers, overrides=[f"seed={seed}"])
            for row in calibrate(request).rows:
                quality = (row.before.ece, row.after.ece, row.after.by_chance, row.after.aurc)
                found.setdefault(row.name, []).append((row.reported_on, row.accuracy, *quality))
    for name, rows in found.items():
        count, *shares = np.mean(rows, axis=0)
        print(f"| {name} | {count:.0f} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
