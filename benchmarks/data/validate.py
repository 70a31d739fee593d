"""How fast `drivekd data validate` looks at a large file, and how much memory it needs.

    python -m benchmarks.data.validate --work /tmp/validate [--records 1000000] [--faulty 1000] [--format jsonl.gz] [--out FILE]

Records in Drive-KD's format are made up: two thirds with options, all with tags, a quarter with six cameras; 20 questions a
frame. Their pictures are six small files, so that it is reading and checking that is measured and not a disk. Of --faulty records
one has a wrong capability, one a coordinate outside the picture (where it asks for objects), and one is a repeat. The peak is
this process's resident set while it validates; what it was before stands beside it. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import about, print_about, write_rows
from benchmarks.memory import memory_mb, restart_peak
from drivekd.data.checks.validate import validate_file
from drivekd.data.writers.records import write_records
from drivekd.sample import CAMERAS, CAPABILITIES

OPTIONS = "Please select the correct answer from the following options: A. Going ahead. B. Turn left. C. Stopped."
QUESTIONS_A_FRAME = 20


def main() -> None:
    """Write the file unless it is there, validate it, print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--faulty", type=int, default=1000)
    parser.add_argument("--format", choices=["json", "jsonl.gz"], default="json")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    path = arguments.work / f"records-{arguments.records}-{arguments.faulty}.{arguments.format}"
    if not path.is_file():
        write_pictures(arguments.work)
        write_records(path, (record(number, arguments.faulty) for number in range(arguments.records)))
    machine = about(threads=1)
    print_about(machine)
    restart_peak()
    before, started, cpu = memory_mb()["rss_mb"], time.perf_counter(), time.process_time()
    report = validate_file(path)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    row: dict[str, Any] = {
        "records": report.records,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "records_a_second": round(report.records / wall_s),
        "before_mb": round(before, 1),
        "peak_mb": round(memory_mb()["peak_mb"], 1),
        "problems": {tally.kind: tally.count for tally in report.problems},
        "warnings": {tally.kind: tally.count for tally in report.warnings},
    }
    print(json.dumps(row))
    write_rows([{**machine, **row}], arguments.out)


def write_pictures(folder: Path) -> None:
    """A small picture for each camera."""
    from PIL import Image

    for place, camera in enumerate(CAMERAS):
        (folder / camera).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 36), (40 * place, 90, 120)).save(folder / camera / f"{camera}.jpg")


def record(number: int, faulty: int) -> dict[str, Any]:
    """The n-th record."""
    n = number - 1 if number % faulty == 3 else number  # a repeat of the one before
    cameras = CAMERAS if n % 4 == 0 else CAMERAS[:1]
    place = f"0.{n % 9000 + 1000}"
    if n % 3:
        question, answer = f"What is the moving status of object <c1,CAM_FRONT,{place},0.5521> at {n}? {OPTIONS}", "B. Turn left."
    else:
        question = f"What are the important objects in scene {n}? They will be considered for the driving decision."
        place = "4.32" if number % faulty == 0 else place
        answer = (
            "There is a gray sedan to the back of the ego vehicle, and a black SUV to the front of it. The IDs of these objects "
            f"are <c1,CAM_BACK,0.5073,{place}> and <c2,CAM_FRONT,0.4886,0.5481>."
        )
    content = "<image>" * len(cameras) + question
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        "images": [f"{camera}/{camera}.jpg" for camera in cameras],
        "question_type": "essay" if number % faulty == 1 else CAPABILITIES[n % 3],
        "meta": {"scene": f"scene-{n // 400}", "frame": f"frame-{n // QUESTIONS_A_FRAME}"},
    }


if __name__ == "__main__":
    main()
