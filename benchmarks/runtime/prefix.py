"""What a frame costs when only some cameras have changed: milliseconds of vision and prefill for 0 to N changed images.

    python -m benchmarks.runtime.prefix --bundle DIR/bundle-internvl3-1b-int4 --frames 2              # 22 vision passes a round
    python -m benchmarks.runtime.prefix --bundle DIR/bundle-internvl3-1b-int4 --frames 5 --encoded    # prefill alone

Cameras keep their order, the slow ones first: "k changed" are the last k, so that everything before them is kept. "first alone"
is the worst order: one image to encode, all to read. Each frame follows another one that was read. --encoded leaves vision out:
rows of the embedding stand for the images.

The line below the table says how proportional it is: milliseconds a token (least squares through all frames), the milliseconds
that remain at nothing changed, and the share of the variance that the line explains.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, print_about, write_rows
from benchmarks.runtime.triad_session import SessionFrames
from drivekd.tables import print_table

HEADER = ["changed", "images encoded", "tokens read", "vision ms p50", "prefill ms p50", "min", "ms a token", "to first token ms"]

Row = dict[str, Any]


def main() -> int:
    arguments = _arguments()
    session = SessionFrames(arguments.bundle, arguments.threads, encoded=arguments.encoded)
    found = _measured(session, arguments)
    turns = [turn for of_case in found.values() for turn in of_case]
    line = proportionality([turn["counts"]["tokens_prefilled"] for turn in turns], [_ms(turn, "prefill") for turn in turns])
    _report([_row(name, of_case) for name, of_case in found.items()], line, session.versions(), arguments)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bundle", type=Path, required=True)
    add("--images", type=int, default=6)
    add("--frames", type=int, default=2, help="of each number of changed images")
    add("--encoded", action="store_true", help="without vision")
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="append one JSON line a row")
    return parser.parse_args()


def _measured(session: SessionFrames, arguments: argparse.Namespace) -> dict[str, list[Row]]:
    """By case, frame after frame; the order turns round every time."""
    images = arguments.images
    cases = {str(changed): range(images - changed, images) for changed in range(images + 1)} | {"first alone": range(1)}
    pictures = Pictures(session, images)
    session.read(pictures.changed(range(images)))  # pages, pools, packed weights
    found: dict[str, list[Row]] = {name: [] for name in cases}
    for number in range(arguments.frames):
        for name in list(cases)[:: -1 if number % 2 else 1]:
            found[name].append(session.read(pictures.changed(cases[name])))
            print(f"{number + 1}/{arguments.frames}, {name} changed: {found[name][-1]['stages']}", file=sys.stderr)
    return found


class Pictures:
    """What the cameras show, as words; each picture is new."""

    def __init__(self, session: SessionFrames, images: int) -> None:
        described = session.describe(images)
        self._tokens_per_image = described["prefix"].count(described["image_token_id"]) // images
        self._seeds = count()
        self._shown: list[list[int]] = [[]] * images

    def changed(self, places: Sequence[int]) -> list[list[int]]:
        """The next frame: other pictures at these places."""
        for place in places:
            words = np.random.default_rng(next(self._seeds)).integers(300, 600, self._tokens_per_image)
            self._shown[place] = words.tolist()
        return list(self._shown)


# --- the table --------------------------------------------------------------------------------------------------------


def _ms(turn: Row, stage: str) -> float:
    return 1e3 * float(turn["stages"].get(stage, 0.0))


def _row(name: str, turns: Sequence[Row]) -> Row:
    stages = {stage: [_ms(turn, stage) for turn in turns] for stage in ("vision", "prefill")}
    counts = turns[-1]["counts"]
    return {
        "changed": name,
        "images_encoded": counts["images_encoded"],
        "tokens_prefilled": counts["tokens_prefilled"],
        **{f"{stage}_ms": values for stage, values in stages.items()},
        **{f"{stage}_p50_ms": statistics.median(values) for stage, values in stages.items()},
        "prefill_min_ms": min(stages["prefill"]),
        "ttft_p50_ms": statistics.median(turn["ttft_ms"] for turn in turns),
    }


def proportionality(tokens: Sequence[int], prefill_ms: Sequence[float]) -> dict[str, float]:
    """The least-squares line through (tokens read, ms): slope, what remains at 0 tokens, share of the variance explained."""
    slope, rest = np.polyfit(tokens, prefill_ms, 1)
    residual = np.asarray(prefill_ms) - np.polyval([slope, rest], tokens)
    return {"ms_per_token": float(slope), "rest_ms": float(rest), "explained": float(1 - residual.var() / np.var(prefill_ms))}


def _report(rows: Sequence[Row], line: dict[str, float], versions: dict[str, str], arguments: argparse.Namespace) -> None:
    machine = about(arguments.threads) | {"versions": versions, "encoded": arguments.encoded}
    print_about(machine)
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    title = f"a frame of {arguments.images} images after another one, {arguments.frames} frames each"
    print_table(title, HEADER, [_cells(row) for row in rows])
    print(f"prefill: {line['ms_per_token']:.3f} ms a token, {line['rest_ms']:.1f} ms besides, {line['explained']:.1%} explained")
    print(write_rows(({"table": "prefix", **row, **line, **machine} for row in rows), arguments.out), end="")


def _cells(row: Row) -> list[str]:
    tokens = row["tokens_prefilled"]
    a_token = f"{row['prefill_p50_ms'] / tokens:.3f}" if tokens else ""
    numbers = [f"{row[key]:,.1f}" for key in ("vision_p50_ms", "prefill_p50_ms", "prefill_min_ms")]
    return [row["changed"], str(row["images_encoded"]), str(tokens), *numbers, a_token, f"{row['ttft_p50_ms']:,.1f}"]


if __name__ == "__main__":
    raise SystemExit(main())
