"""Free text against structured answers of a bundle, on the built-in world: accuracy of the same questions, with intervals.

    python -m benchmarks.evaluate.structured BUNDLE --data out/demo/world/test.json [--reference TRAIN] [--show 3] [--out FILE]

The bundle is asked each record's own question, and once a frame for structured answers at the frame's ego speed; what these list
is read back as options (drivekd/world/stated.py). --show prints the structured answers of the first frames.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.machine import about, print_about, write_rows
from drivekd.data.readers import read_samples
from drivekd.demo.both_forms import HEADER, TITLE, both_forms
from drivekd.log import ProgressLine
from drivekd.sample import CAPABILITIES
from drivekd.tables import print_table


def main() -> None:
    """Print the table, and write rows where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--reference", type=Path, help="records whose majority answer is the baseline")
    parser.add_argument("--show", type=int, default=0, help="print the structured answers of so many frames")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    machine, line = about(threads=os.cpu_count() or 1), ProgressLine()
    print_about(machine)
    found = both_forms(
        arguments.bundle,
        arguments.data,
        reference=read_samples(arguments.reference) if arguments.reference else (),
        on_progress=lambda done, total: line.show(f"{done}/{total} frames", final=done == total),
    )
    print_table(TITLE, HEADER, found.rows())
    for scene, answers in list(found.answers.items())[: arguments.show]:
        print(scene, *(answers[name].text for name in CAPABILITIES), sep="\n  ")
    rows = ({"form": name, **row} for name, report in found.reports.items() for row in report.to_json()["scores"])
    write_rows(({**machine, **row} for row in rows), arguments.out)


if __name__ == "__main__":
    main()
