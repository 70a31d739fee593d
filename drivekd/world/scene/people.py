"""Pedestrians and cyclists: flat figures that face the ego vehicle (yaw 0 faces a camera that looks along +x)."""

from __future__ import annotations

from functools import lru_cache

from .mesh import PAINT, Color, Mesh, MeshBuilder
from .shapes import disc, rectangle

PEOPLE_SIZES_M: dict[str, tuple[float, float, float]] = {  # length, width, height
    "pedestrian": (0.6, 0.7, 1.75),
    "cyclist": (0.8, 0.8, 1.8),
}

_SKIN: Color = (208, 164, 134)
_HAIR: Color = (52, 38, 30)
_TROUSERS: Color = (42, 46, 66)
_SHOES: Color = (24, 22, 22)
_FRAME: Color = (46, 48, 54)


@lru_cache(maxsize=32)
def person_mesh(kind: str, stride: int) -> Mesh:
    """kind: pedestrian or cyclist. stride: -2..2, how far the legs are apart, in steps of 9 cm."""
    builder = MeshBuilder()
    builder.begin_part(0.0, 0.0, 0.4, 0.6)
    if kind == "cyclist":
        _add_cyclist(builder)
    else:
        _add_pedestrian(builder, stride * 0.09)
    return builder.build()


def _add_pedestrian(builder: MeshBuilder, stride_m: float) -> None:
    for side, foot_m in ((0.1, stride_m), (-0.1, -stride_m)):
        _add_limb(builder, side + foot_m, 0.1, side, 0.9, 0.09, _TROUSERS)
        builder.add(rectangle((side + foot_m - 0.1, side + foot_m + 0.1), (0.0, 0.1)), _SHOES, two_sided=True)
    for side, hand_m in ((0.27, -stride_m), (-0.27, stride_m)):
        _add_limb(builder, side + hand_m * 0.8, 0.85, side, 1.45, 0.06, PAINT)
    _add_torso(builder, 0.86, 1.5)
    _add_head(builder, 1.5)


def _add_cyclist(builder: MeshBuilder) -> None:
    builder.add(rectangle((-0.05, 0.05), (0.0, 0.72)), _SHOES, two_sided=True)
    builder.add(rectangle((-0.3, 0.3), (0.98, 1.05)), _FRAME, two_sided=True)
    for side, foot_m in ((0.13, 0.22), (-0.13, 0.42)):
        _add_limb(builder, side, foot_m, side, 0.98, 0.08, _TROUSERS)
    for side in (0.26, -0.26):
        _add_limb(builder, side, 1.0, side * 0.8, 1.45, 0.06, PAINT)
    _add_torso(builder, 0.9, 1.52)
    _add_head(builder, 1.52)
    builder.add(disc((-0.04, 0.0, 1.74), 0.14, squash=0.6), (206, 62, 40), two_sided=True)


def _add_limb(
    builder: MeshBuilder, low_y: float, low_z: float, high_y: float, high_z: float, half_width: float, color: Color
) -> None:
    limb = rectangle((low_y - half_width, low_y + half_width), (low_z, high_z), lean_m=high_y - low_y)
    builder.add(limb, color, two_sided=True)


def _add_torso(builder: MeshBuilder, bottom_m: float, top_m: float) -> None:
    torso = rectangle((-0.2, 0.2), (bottom_m, top_m))
    torso[2:, 1] *= 1.25  # shoulders
    builder.add(torso, PAINT, two_sided=True)


def _add_head(builder: MeshBuilder, neck_m: float) -> None:
    builder.add(disc((0.0, 0.0, neck_m + 0.12), 0.12, squash=1.2), _SKIN, two_sided=True)
    builder.add(disc((-0.01, 0.0, neck_m + 0.2), 0.125, squash=0.65), _HAIR, two_sided=True)
