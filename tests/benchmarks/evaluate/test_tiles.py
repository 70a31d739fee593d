"""Lights at a distance: the picture shows them where the record says, in the colour it says; the command line runs once, tiny."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.evaluate import distant_lights
from benchmarks.evaluate.distant_lights import FARTHEST_M, NEAREST_M, SEEN_PX, lamp_width_px
from drivekd.images import load_image

if TYPE_CHECKING:
    from command_fixtures import RunBenchmark


def test_a_record_says_what_its_picture_shows(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    seeds = list(distant_lights._straight_seeds(0, 6))
    found = [distant_lights._write_frame(tmp_path, "test", seed) for seed in seeds]
    frames = [frame for frame in found if frame is not None]
    assert len(frames) >= 3
    assert {record["messages"][1]["content"] for record, _ in frames} == {"A. Red.", "B. Green."}
    for record, distance_m in frames:
        assert NEAREST_M <= distance_m <= FARTHEST_M
        picture = load_image(tmp_path / record["images"][0]).astype(int)
        assert picture.shape[1::-1] == SEEN_PX
        red_over_green = picture[..., 0] - picture[..., 1]
        lit = -red_over_green if record["messages"][1]["content"] == "B. Green." else red_over_green
        assert np.count_nonzero(lit[: SEEN_PX[1] * 2 // 3] > 60) > 0, "a lamp of that colour hangs above the road"


def test_a_seed_gives_the_same_frame_and_lights_are_no_scenes_twice(tmp_path: Path) -> None:
    frames = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        (folder / "train").mkdir(parents=True)
        seed = next(distant_lights._straight_seeds(40, 1))
        frames.append((distant_lights._write_frame(folder, "train", seed), (folder / f"train/{seed:07d}.png").read_bytes()))
    assert frames[0] == frames[1]
    seeds = list(distant_lights._straight_seeds(0, 50))
    assert len(set(seeds)) == 50


def test_the_width_of_a_lamp_by_hand() -> None:
    """.9 m at 36 m through 448 px of 70 degrees is 8 px; 112 of 320 px are left of it in one tile, 224 in two."""
    assert lamp_width_px(36.0, 112, 1) == pytest.approx(0.9 * 224 / np.tan(np.radians(35)) / 36 * 112 / 320)
    assert lamp_width_px(36.0, 112, 2) == 2 * lamp_width_px(36.0, 112, 1) == pytest.approx(5.6, abs=0.05)


@pytest.mark.e2e
@pytest.mark.slow
def test_both_tables_are_printed(run_benchmark: RunBenchmark, tmp_path: Path) -> None:
    flags = ("--work", tmp_path, "--frames", 12, "--test-frames", 12, "--steps", 1, "--seeds", "0", "--tilings", "1x1,2x1")
    accuracy = run_benchmark("-m", "benchmarks.evaluate.tiles", *flags).stdout
    assert "| 30 to 600 m | " in accuracy
    assert accuracy.count("whole accuracy by seed") == 2
    cost = run_benchmark("-m", "benchmarks.evaluate.tiles", *flags, "--cost", 1).stdout
    assert "| 1x1 | 16 | " in cost
    assert "| 2x1 | 32 | " in cost
