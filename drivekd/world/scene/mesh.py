"""Coloured polygons in flat arrays, so that a whole street is projected, culled and shaded in a few numpy calls.

A mesh is made once in its own frame (x forward, y left, z up, metres), cached, and then placed many times. A part is
a convex piece of it standing on a footprint: painting sorts parts, and keeps the order of faces within a part.
Letters: M faces, T vertices of all faces, P parts, V vertices of one face.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .road import Floats

Color = tuple[int, int, int]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

PAINT: Color = (-1, -1, -1)
"""Stands for the colour that is chosen when the mesh is placed."""


@dataclass(frozen=True)
class Mesh:
    """Faces as arrays; see the module docstring for the letters."""

    vertices_m: Floats  # [T, 3]
    num_vertices: Ints  # [M]
    colors: Floats  # [M, 3], 0..255
    normals: Floats  # [M, 3], unit
    emission: Floats  # [M], 0 = lit by its surroundings, 1 = a lamp
    two_sided: Bools  # [M]
    part: Ints  # [M], which part a face belongs to
    footprints_m: Floats  # [P, 4, 2]

    def placed(self, x_m: float, y_m: float, yaw_rad: float, paint: Color = (128, 128, 128)) -> Mesh:
        """The mesh turned by yaw, moved to x, y, its PAINT faces in the colour `paint`."""
        cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
        painted = self.colors[:, :1] < 0.0  # [M, 1]
        return Mesh(
            vertices_m=_turned(self.vertices_m, cos, sin, x_m, y_m),
            num_vertices=self.num_vertices,
            colors=np.where(painted, np.array(paint, float), self.colors),
            normals=_turned(self.normals, cos, sin, 0.0, 0.0),
            emission=self.emission,
            two_sided=self.two_sided,
            part=self.part,
            footprints_m=_turned(self.footprints_m, cos, sin, x_m, y_m),
        )

    @property
    def starts(self) -> Ints:
        """Index of each face's first vertex, [M]."""
        return np.cumsum(self.num_vertices) - self.num_vertices


def _turned(points: Floats, cos: float, sin: float, x_m: float, y_m: float) -> Floats:
    turned = points.copy()
    turned[..., 0] = points[..., 0] * cos - points[..., 1] * sin + x_m
    turned[..., 1] = points[..., 0] * sin + points[..., 1] * cos + y_m
    return turned


def join_meshes(meshes: Sequence[Mesh]) -> Mesh:
    """All meshes as one; parts are renumbered in the order given."""
    first_parts = np.cumsum([0, *(len(mesh.footprints_m) for mesh in meshes[:-1])])
    return Mesh(
        vertices_m=np.concatenate([mesh.vertices_m for mesh in meshes]),
        num_vertices=np.concatenate([mesh.num_vertices for mesh in meshes]),
        colors=np.concatenate([mesh.colors for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        emission=np.concatenate([mesh.emission for mesh in meshes]),
        two_sided=np.concatenate([mesh.two_sided for mesh in meshes]),
        part=np.concatenate([mesh.part + first for mesh, first in zip(meshes, first_parts, strict=True)]),
        footprints_m=np.concatenate([mesh.footprints_m for mesh in meshes]),
    )


@dataclass
class MeshBuilder:
    """Collects parts and faces; `build` returns the mesh. Faces go counter-clockwise as seen from outside."""

    _points: list[Floats] = field(default_factory=list)
    _colors: list[Color] = field(default_factory=list)
    _emission: list[float] = field(default_factory=list)
    _two_sided: list[bool] = field(default_factory=list)
    _part: list[int] = field(default_factory=list)
    _footprints: list[Floats] = field(default_factory=list)

    def begin_part(self, x_m: float, y_m: float, length_m: float, width_m: float) -> None:
        """Faces added from now on stand on this rectangle, centred on x, y."""
        corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length_m / 2.0, width_m / 2.0]
        self._footprints.append(corners + np.array([x_m, y_m]))

    def add(self, points_m: Floats, color: Color, *, emission: float = 0.0, two_sided: bool = False) -> None:
        """Add one flat polygon [V, 3]."""
        assert self._footprints, "begin_part comes first"
        self._points.append(np.asarray(points_m, float))
        self._colors.append(color)
        self._emission.append(emission)
        self._two_sided.append(two_sided)
        self._part.append(len(self._footprints) - 1)

    def build(self) -> Mesh:
        return Mesh(
            vertices_m=np.concatenate(self._points),
            num_vertices=np.array([len(points) for points in self._points]),
            colors=np.array(self._colors, float),
            normals=np.array([_normal(points) for points in self._points]),
            emission=np.array(self._emission),
            two_sided=np.array(self._two_sided),
            part=np.array(self._part),
            footprints_m=np.array(self._footprints),
        )


def _normal(points: Floats) -> Floats:
    third = len(points) // 3
    normal = np.cross(points[third] - points[0], points[2 * third] - points[0])
    unit: Floats = normal / np.linalg.norm(normal)
    return unit
