"""What each picture setting costs: milliseconds a camera picture, and how much it changes, by severity.

    python -m benchmarks.evaluate.corruptions [--size 1600x900] [--repeat 5] [--picture FILE --sheet sheet.png] [--out FILE]

Without --picture the picture is seeded noise made smooth. Time is this process's CPU time, so that what else the machine does
does not count; a row has the median and the largest. `change` is the mean absolute difference in levels of 255, severity 1 to 5,
of a camera that is hit. --sheet draws every setting at its default severity, to be looked at.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.machine import about, print_about, write_rows
from drivekd.evaluate.corruptions import DEFAULT_SEVERITY, SETTINGS, corrupted_frame, frame_seed, implementation
from drivekd.images import RGBImage, load_image, resize

CAMERA = "CAM_FRONT"
TILE_PX = (480, 270)
COLUMNS = 4


def main() -> None:
    """Print a line a setting; write rows and the sheet where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1600x900", help="width x height in px")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    image = resize(load_image(arguments.picture), (width, height)) if arguments.picture else smooth_noise(width, height)
    machine = about(threads=1)
    print_about(machine)
    print(f"{'setting':24} {'ms':>6} {'worst':>6}  {'change by severity':34} made by")
    rows = [row_of(image, setting, arguments.repeat) for setting in SETTINGS]
    write_rows(({**machine, "size_px": [width, height], **row} for row in rows), arguments.out)
    if arguments.sheet:
        contact_sheet(image).save(arguments.sheet)


def smooth_noise(width: int, height: int) -> RGBImage:
    """Seeded, with large and small shapes."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height)).filter(ImageFilter.GaussianBlur(2)))


def row_of(image: RGBImage, setting: str, repeat: int) -> dict[str, Any]:
    """Measure one setting and print its line."""
    made, times_ms = corrupted(image, setting), []  # the first warms up
    for index in range(repeat):
        started = time.process_time()
        made = corrupted(image, setting, index)
        times_ms.append(1000 * (time.process_time() - started))
    changes = [] if setting not in DEFAULT_SEVERITY else [change(image, setting, severity) for severity in range(1, 6)]
    row = {
        "setting": setting,
        "ms": round(statistics.median(times_ms), 1),
        "worst_ms": round(max(times_ms), 1),
        "change": changes or [round(difference(image, made), 1)],
        "implementation": implementation(setting),
    }
    told = " ".join(f"{value:6.1f}" for value in row["change"])
    print(f"{setting:24} {row['ms']:6.1f} {row['worst_ms']:6.1f}  {told:34} {row['implementation']}")
    return row


def corrupted(image: RGBImage, setting: str, index: int = 0, severity: int | None = None) -> RGBImage:
    """The front camera of the index-th frame."""
    return corrupted_frame({CAMERA: image}, setting, severity=severity, seed=frame_seed(0, str(index)))[CAMERA]


def difference(left: RGBImage, right: RGBImage) -> float:
    """Mean absolute, in levels of 255."""
    return float(np.abs(left.astype(np.int16) - right).mean())


def change(image: RGBImage, setting: str, severity: int) -> float:
    """Of the first frames, those that are hit; 0 where none is."""
    found = [difference(image, corrupted(image, setting, index, severity)) for index in range(3)]
    return round(statistics.mean([value for value in found if value] or [0.0]), 1)


def contact_sheet(image: RGBImage) -> Image.Image:
    """Every setting at its default severity, named."""
    width, height = TILE_PX
    sheet = Image.new("RGB", (width * COLUMNS, height * -(-len(SETTINGS) // COLUMNS)))
    for place, setting in enumerate(SETTINGS):
        tile = Image.fromarray(corrupted(image, setting)).resize(TILE_PX)
        ImageDraw.Draw(tile).text((6, 6), setting, fill=(255, 255, 0))
        sheet.paste(tile, (place % COLUMNS * width, place // COLUMNS * height))
    return sheet


if __name__ == "__main__":
    main()
