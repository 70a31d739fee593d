"""Meshes beside and above the road: buildings, trees, street lamps, signal gantries.

Buildings come from a catalogue of finite size so that each is built once. Their origin is the middle of the wall that
faces the road, facing +x; all other meshes stand on their origin.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

from .mesh import Color, Mesh, MeshBuilder
from .road import Floats
from .shapes import Block, add_block, disc, patch, rectangle

SignalState = Literal["red", "green", "none"]

NUM_BUILDINGS = 36
NUM_TREES = 6
LAMP_POST_HEIGHT_M = 6.4
SIGNAL_LAMP_RADIUS_M = 0.45
SIGNAL_HOUSING_M = (1.2, 3.1)  # width, height: twice life size, because the picture is looked at in 112 x 112 pixels

_WALLS: tuple[Color, ...] = (
    (196, 170, 136),
    (162, 98, 78),
    (206, 200, 190),
    (124, 134, 150),
    (214, 188, 142),
    (170, 126, 104),
)
_AWNINGS: tuple[Color, ...] = ((126, 52, 46), (48, 92, 84), (58, 70, 110), (150, 116, 62), (90, 90, 94))
_WINDOW_DAY: Color = (74, 92, 112)
_WINDOW_DARK: Color = (38, 44, 58)
_WINDOW_LIT: Color = (246, 208, 128)
_STEEL: Color = (74, 78, 84)


def building_size_m(variant: int) -> tuple[float, float, float]:
    """Width along the road, depth, height of catalogue building `variant`."""
    rng = np.random.default_rng((5, variant))
    return float(rng.integers(9, 19)), float(rng.integers(7, 11)), float(rng.integers(2, 8)) * 3.2 + 0.9


@lru_cache(maxsize=2 * NUM_BUILDINGS)
def building_mesh(variant: int, dark: bool) -> Mesh:
    """Catalogue building `variant` (0 .. NUM_BUILDINGS - 1); dark: some windows are lit."""
    rng = np.random.default_rng((6, variant))
    width_m, depth_m, height_m = building_size_m(variant)
    red, green, blue = (int(value) for value in np.array(_WALLS[variant % len(_WALLS)]) + rng.integers(-12, 13))
    block = Block(depth_m, width_m, height_m, -depth_m / 2.0)
    builder = MeshBuilder()
    add_block(builder, block, (red, green, blue))
    for face, wall_width_m in ((block.front, width_m), (block.left, depth_m), (block.right, depth_m)):
        builder.add(patch(face, 0.0, 1.0, 1.0 - 0.5 / height_m, 1.0), (red * 3 // 4, green * 3 // 4, blue * 3 // 4))
        _add_shop_fronts(builder, face, max(1, int(wall_width_m / 4.5)), 3.3 / height_m, dark, rng)
        _add_windows(builder, face, max(2, int(wall_width_m / 2.9)), 3.6 / height_m, int(height_m / 3.2) - 1, dark, rng)
    return builder.build()


def _add_shop_fronts(builder: MeshBuilder, face: Floats, count: int, top: float, dark: bool, rng: np.random.Generator) -> None:
    """Ground floor: wide panes below coloured awnings."""
    for shop in range(count):
        left, right = (shop + 0.1) / count, (shop + 0.9) / count
        lit = dark and rng.random() < 0.6
        pane = patch(face, left, right, 0.03 * top, 0.74 * top)
        builder.add(pane, _WINDOW_LIT if lit else _WINDOW_DARK, emission=0.6 if lit else 0.0)
        awning = _AWNINGS[int(rng.integers(len(_AWNINGS)))]
        builder.add(patch(face, left, right, 0.74 * top, 0.98 * top), awning)


def _add_windows(
    builder: MeshBuilder, face: Floats, columns: int, bottom: float, rows: int, dark: bool, rng: np.random.Generator
) -> None:
    row_height = (0.97 - bottom) / max(1, rows)
    for row in range(rows):
        low = bottom + row * row_height
        for column in range(columns):
            lit = dark and rng.random() < 0.4
            color = _WINDOW_LIT if lit else _WINDOW_DARK if dark else _WINDOW_DAY
            window = patch(
                face,
                (column + 0.2) / columns,
                (column + 0.8) / columns,
                low + 0.2 * row_height,
                low + 0.75 * row_height,
            )
            builder.add(window, color, emission=0.85 if lit else 0.0)


@lru_cache(maxsize=NUM_TREES)
def tree_mesh(variant: int) -> Mesh:
    """A trunk and a crown of seven discs; dark below, light above."""
    rng = np.random.default_rng((7, variant))
    height_m = float(rng.uniform(4.5, 7.0))
    builder = MeshBuilder()
    builder.begin_part(0.0, 0.0, 0.6, 0.6)
    builder.add(rectangle((-0.14, 0.14), (0.0, height_m * 0.6)), (78, 60, 46), two_sided=True)
    leaf = np.array([50, 92, 42]) + rng.integers(-10, 11, 3)
    for rank in range(7):
        rise = (rank - 3) / 3.0  # -1 lowest leaves .. 1 highest
        y_m = float(rng.uniform(-0.75, 0.75)) * (1.0 - 0.5 * abs(rise))
        red, green, blue = (int(value) for value in leaf * (1.0 + 0.26 * rise))
        crown = disc(
            (-0.01 * rank, y_m, height_m * (0.72 + 0.17 * rise)),
            height_m * float(rng.uniform(0.16, 0.22)),
            num_vertices=12,
        )
        builder.add(crown, (red, green, blue), two_sided=True)
    return builder.build()


@lru_cache(maxsize=2)
def lamp_post_mesh(dark: bool) -> Mesh:
    """A street lamp whose arm reaches 1.6 m along +x, over the road."""
    builder = MeshBuilder()
    builder.begin_part(0.0, 0.0, 0.4, 0.4)
    for block in (Block(0.14, 0.14, LAMP_POST_HEIGHT_M), Block(1.6, 0.1, 0.1, 0.8, LAMP_POST_HEIGHT_M)):
        add_block(builder, block, _STEEL, new_part=False)
    head = Block(0.7, 0.3, 0.16, 1.5, LAMP_POST_HEIGHT_M - 0.12)
    add_block(builder, head, (255, 236, 190) if dark else (176, 178, 180), new_part=False)
    lamp = disc((1.2, 0.0, LAMP_POST_HEIGHT_M - 0.08), 0.22, squash=0.6)
    builder.add(lamp, (255, 240, 200) if dark else (190, 190, 186), emission=1.0 if dark else 0.0, two_sided=True)
    return builder.build()


@lru_cache(maxsize=64)
def signal_mesh(state: SignalState, bottom_m: float, post_m: float) -> Mesh:
    """A signal head above the origin on an arm from a post at y = post_m. bottom_m: height of its underside."""
    width_m, height_m = SIGNAL_HOUSING_M
    builder = MeshBuilder()
    arm_m = bottom_m + 0.78 * height_m
    add_block(builder, Block(0.2, 0.22, arm_m + 0.3, 0.4, y_m=post_m), _STEEL)
    builder.begin_part(0.15, 0.0, 0.5, width_m)
    builder.add(rectangle((min(0.0, post_m), max(0.0, post_m)), (arm_m - 0.1, arm_m + 0.12), 0.38), _STEEL, two_sided=True)
    housing = Block(0.3, width_m, height_m, 0.17, bottom_m)
    add_block(builder, housing, (22, 23, 26), new_part=False)
    builder.add(patch(housing.rear, 0.04, 0.96, 0.015, 0.985), (38, 39, 42))
    lamps: tuple[tuple[str, Color, Color], ...] = (
        ("red", (255, 36, 28), (58, 16, 14)),
        ("amber", (255, 190, 40), (56, 44, 14)),
        ("green", (36, 255, 118), (12, 48, 28)),
    )
    for name, lit, unlit in lamps:
        z_m = signal_lamp_height_m(name, bottom_m)
        builder.add(
            disc((0.0, 0.0, z_m), SIGNAL_LAMP_RADIUS_M, num_vertices=20),
            lit if name == state else unlit,
            emission=float(name == state),
        )
    return builder.build()


def signal_lamp_height_m(name: str, bottom_m: float) -> float:
    """Height of the centre of lamp red, amber or green in a housing whose underside is at bottom_m."""
    rank = ("green", "amber", "red").index(name)
    return bottom_m + SIGNAL_HOUSING_M[1] * (2 * rank + 1) / 6.0
