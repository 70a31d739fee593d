"""The few solids and outlines that everything in the world is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .mesh import Color, MeshBuilder
from .road import Floats


@dataclass(frozen=True)
class Block:
    """A box whose top may be smaller than its base. Faces are [4, 3]: bottom left, bottom right, top right, top left
    as seen from outside, so that u runs to the viewer's right and v upwards. front, rear, left, right, top: one each; walls: the
    first four in that order.

    x_m, y_m, z_m: centre and underside. taper_front_m, taper_rear_m, taper_side_m: how far the top edge is drawn in.
    """

    length_m: float
    width_m: float
    height_m: float
    x_m: float = 0.0
    z_m: float = 0.0
    y_m: float = 0.0
    taper_front_m: float = 0.0
    taper_rear_m: float = 0.0
    taper_side_m: float = 0.0

    def _corner(self, forward: int, left: int, top: bool) -> list[float]:
        drawn_in = (self.taper_front_m if forward > 0 else self.taper_rear_m) if top else 0.0
        x_m = self.x_m + forward * (self.length_m / 2.0 - drawn_in)
        y_m = self.y_m + left * (self.width_m / 2.0 - (self.taper_side_m if top else 0.0))
        return [x_m, y_m, self.z_m + (self.height_m if top else 0.0)]

    def _wall(self, right: tuple[int, int], left: tuple[int, int]) -> Floats:
        return np.array(
            [
                self._corner(*left, False),
                self._corner(*right, False),
                self._corner(*right, True),
                self._corner(*left, True),
            ]
        )

    @property
    def front(self) -> Floats:
        return self._wall((1, 1), (1, -1))

    @property
    def rear(self) -> Floats:
        return self._wall((-1, -1), (-1, 1))

    @property
    def left(self) -> Floats:
        return self._wall((-1, 1), (1, 1))

    @property
    def right(self) -> Floats:
        return self._wall((1, -1), (-1, -1))

    @property
    def top(self) -> Floats:
        return np.array(
            [self._corner(-1, -1, True), self._corner(1, -1, True), self._corner(1, 1, True), self._corner(-1, 1, True)]
        )

    @property
    def walls(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.front, self.rear, self.left, self.right


def add_block(builder: MeshBuilder, block: Block, color: Color, *, new_part: bool = True) -> None:
    """Add the walls and the top of `block`; the underside is never seen."""
    if new_part:
        builder.begin_part(block.x_m, block.y_m, block.length_m, block.width_m)
    for face in (*block.walls, block.top):
        builder.add(face, color)


def patch(face: Floats, left: float, right: float, bottom: float, top: float) -> Floats:
    """A rectangle [4, 3] on `face` [4, 3]; edges in 0..1 along its width and height."""
    corners = np.array([[left, bottom], [right, bottom], [right, top], [left, top]])
    u, v = corners[:, :1], corners[:, 1:]  # [4, 1]
    lower, upper = face[0] * (1 - u) + face[1] * u, face[3] * (1 - u) + face[2] * u
    points: Floats = lower * (1 - v) + upper * v
    return points


def disc(
    center_m: tuple[float, float, float],
    radius_m: float,
    facing: str = "rear",
    num_vertices: int = 14,
    squash: float = 1.0,
) -> Floats:
    """An upright disc [V, 3]. facing: rear (seen by a follower), left or right. squash: height over width."""
    turn = np.arange(num_vertices) * (2.0 * math.pi / num_vertices)
    across, up = radius_m * np.cos(turn), radius_m * squash * np.sin(turn)
    x_m, y_m, z_m = center_m
    if facing == "rear":
        return np.stack([np.full(num_vertices, x_m), y_m - across, z_m + up], axis=1)
    sign = -1.0 if facing == "left" else 1.0
    return np.stack([x_m + sign * across, np.full(num_vertices, y_m), z_m + up], axis=1)


def rectangle(y_m: tuple[float, float], z_m: tuple[float, float], x_m: float = 0.0, lean_m: float = 0.0) -> Floats:
    """An upright rectangle [4, 3] seen by a follower; lean_m moves its top to the left."""
    (y0, y1), (z0, z1) = y_m, z_m
    return np.array([[x_m, y1, z0], [x_m, y0, z0], [x_m, y0 + lean_m, z1], [x_m, y1 + lean_m, z1]])
