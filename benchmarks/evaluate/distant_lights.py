"""Pictures of the built-in world whose traffic light stands at a drawn distance, red or green by a coin: records and distances.

A scene of the world is taken as it is, but for its light: 30 to 600 m ahead on a straight road (the world's own stand at 16 to
22 m), hidden by nothing. A window of the picture is what the camera sees, drawn so that the light hangs within the left or the
right half, not between the two. Its colour hangs on nothing else in the scene, so that it must be seen. In a tile of 112 px the
world's lamps of .9 m are about as wide as lamps of .3 m at the same distance in a tile of 448 px, for a camera of 1600 px with a
focal length of 1,266 px.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from drivekd.world import Scene, make_scene, render_frame
from drivekd.world.picture.camera import make_camera
from drivekd.world.picture.labels import look
from drivekd.world.questions import Record, records_of
from drivekd.world.scene.street import SIGNAL_LAMP_RADIUS_M
from drivekd.world.staging import situation_of

CAMERA = "CAM_FRONT"
RENDERED_PX, SEEN_PX = (448, 252), (320, 180)  # width, height; seen: the window that becomes the picture
NEAREST_M, FARTHEST_M = 30.0, 600.0  # drawn evenly in their logarithm
FIRST_SEEDS = {"train": 0, "test": 1_000_000}  # the world's: no scene is in both
MIN_VISIBILITY = 0.95  # of the housing, as the world's own lights have it
MOST_PLACES = 6
LEFT_PX, TOP_PX = (0, 120), 30  # of the window, at least: the light then hangs at .67 or at .3 of its width, a quarter down
JITTER_PX = 8  # and so many more

Window: TypeAlias = tuple[int, int]  # left, top


def lamp_width_px(distance_m: float, tile_px: int, columns: int) -> float:
    """Width of the lit lamp in tiles of that side, `columns` beside each other; the world's lamps are .9 m wide."""
    focal_px = make_camera(CAMERA, RENDERED_PX).focal_px
    return 2 * SIGNAL_LAMP_RADIUS_M * focal_px / distance_m * tile_px * columns / SEEN_PX[0]


def write_lights(folder: Path, split: str, count: int, workers: int) -> None:
    """folder/SPLIT.json, SPLIT/*.png and SPLIT-distances.json: metres by scene. Of `count` scenes, those whose light is seen.

    PNG: JPEG halves the resolution of colour, which is what is asked for.
    """
    (folder / split).mkdir(parents=True)
    records, distances = [], {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        make = partial(_write_frame, folder, split)
        for found in pool.map(make, _straight_seeds(FIRST_SEEDS[split], count), chunksize=8):
            if found is not None:
                record, distance_m = found
                records.append(record)
                distances[record["meta"]["scene"]] = distance_m
    (folder / f"{split}-distances.json").write_text(json.dumps(distances), encoding="utf-8")
    (folder / f"{split}.json").write_text(json.dumps(records), encoding="utf-8")  # last: it says that all is there


def _straight_seeds(first: int, count: int) -> Iterator[int]:
    seed = first
    for _ in range(count):
        while situation_of(seed).bend != 0:
            seed += 1
        yield seed
        seed += 1


def _write_frame(folder: Path, split: str, seed: int) -> tuple[Record, float] | None:
    found = _with_light(make_scene(seed))
    if found is None:
        return None
    scene, distance_m, (left, top) = found
    picture, _ = render_frame(scene, CAMERA, RENDERED_PX)
    name = f"{split}/{seed:07d}.png"
    Image.fromarray(picture[top : top + SEEN_PX[1], left : left + SEEN_PX[0]]).save(folder / name)
    records = records_of(scene, (), {CAMERA: name}, scene_name=f"{split}-{seed:07d}")
    return next(record for record in records if record["meta"]["topic"] == "signal"), distance_m


def _with_light(scene: Scene) -> tuple[Scene, float, Window] | None:
    """The scene with a light at the first of some drawn distances at which it is seen, and its window.

    None: behind a near bus, say.
    """
    rng = np.random.default_rng((scene.seed, 21))
    colour: Literal["red", "green"] = "red" if rng.random() < 0.5 else "green"
    for _ in range(MOST_PLACES):
        distance_m = round(float(np.exp(rng.uniform(np.log(NEAREST_M), np.log(FARTHEST_M)))), 1)
        lit = replace(scene, signal=colour, signal_m=distance_m)
        sight = look(lit, make_camera(CAMERA, RENDERED_PX))
        if sight.signal_visibility >= MIN_VISIBILITY:
            left, top = int(rng.choice(LEFT_PX)) + rng.integers(JITTER_PX + 1), TOP_PX + rng.integers(JITTER_PX + 1)
            return lit, distance_m, (int(left), int(top))
    return None
