"""Meshes of cars, vans, trucks and buses. Origin: centre of the footprint, facing +x."""

from __future__ import annotations

from functools import lru_cache

from .mesh import PAINT, Color, Mesh, MeshBuilder
from .road import Floats
from .shapes import Block, add_block, disc, patch

VEHICLE_SIZES_M: dict[str, tuple[float, float, float]] = {  # length, width, height
    "car": (4.6, 1.85, 1.5),
    "van": (5.4, 2.05, 2.3),
    "truck": (8.4, 2.5, 3.5),
    "bus": (11.0, 2.55, 3.2),
}

_GLASS: Color = (34, 44, 56)
_TRIM: Color = (26, 27, 30)
_TYRE: Color = (20, 20, 22)
_RIM: Color = (138, 140, 146)
_PLATE: Color = (226, 226, 214)
_CARGO: Color = (206, 206, 200)
_GROUND_CLEARANCE_M = 0.28


@lru_cache(maxsize=32)
def vehicle_mesh(kind: str, braking: bool, dark: bool) -> Mesh:
    """The mesh of one of VEHICLE_SIZES_M. braking: bright rear lamps. dark: lamps lit."""
    builder = MeshBuilder()
    makers = {"car": _add_car, "van": _add_van, "truck": _add_truck, "bus": _add_bus}
    makers[kind](builder, _tail_lamp(braking, dark), 1.0 if dark else 0.55)
    return builder.build()


def _tail_lamp(braking: bool, dark: bool) -> tuple[Color, float]:
    if braking:
        return (255, 34, 26), 1.0
    return (188, 22, 20), 0.75 if dark else 0.3


def _add_car(builder: MeshBuilder, tail: tuple[Color, float], head: float) -> None:
    length, width, height = VEHICLE_SIZES_M["car"]
    body = Block(length, width, 0.62, z_m=_GROUND_CLEARANCE_M, taper_front_m=0.14, taper_rear_m=0.08, taper_side_m=0.05)
    cabin = Block(2.75, width * 0.93, height - 0.9, -0.25, 0.9, taper_front_m=0.62, taper_rear_m=0.45, taper_side_m=0.2)
    add_block(builder, body, PAINT)
    _add_sills(builder, body)
    _add_lamps(builder, body, tail, head, bottom=0.48, top=0.84, width=0.22)
    _add_wheels(builder, width, (1.42, -1.42), 0.34)
    add_block(builder, cabin, PAINT, new_part=False)
    for face in (cabin.front, cabin.rear):
        builder.add(patch(face, 0.06, 0.94, 0.1, 0.9), _GLASS)
    for face in (cabin.left, cabin.right):
        builder.add(patch(face, 0.08, 0.48, 0.12, 0.86), _GLASS)
        builder.add(patch(face, 0.52, 0.92, 0.12, 0.86), _GLASS)


def _add_van(builder: MeshBuilder, tail: tuple[Color, float], head: float) -> None:
    length, width, height = VEHICLE_SIZES_M["van"]
    body = Block(
        length,
        width,
        height - _GROUND_CLEARANCE_M,
        z_m=_GROUND_CLEARANCE_M,
        taper_front_m=0.7,
        taper_rear_m=0.06,
        taper_side_m=0.12,
    )
    add_block(builder, body, PAINT)
    _add_sills(builder, body, height=0.1)
    builder.add(patch(body.front, 0.08, 0.92, 0.5, 0.88), _GLASS)
    for left, right in ((0.1, 0.47), (0.53, 0.9)):
        builder.add(patch(body.rear, left, right, 0.52, 0.88), _GLASS)
    builder.add(patch(body.left, 0.66, 0.86, 0.52, 0.86), _GLASS)
    builder.add(patch(body.right, 0.14, 0.34, 0.52, 0.86), _GLASS)
    _add_lamps(builder, body, tail, head, bottom=0.18, top=0.4, width=0.13)
    _add_wheels(builder, width, (1.7, -1.6), 0.36)


def _add_truck(builder: MeshBuilder, tail: tuple[Color, float], head: float) -> None:
    length, width, height = VEHICLE_SIZES_M["truck"]
    cargo = Block(length - 2.2, width, height - 0.95, -1.1, 0.95)
    cab = Block(1.95, width * 0.95, height - 1.0, length / 2 - 0.98, 0.4, taper_front_m=0.22, taper_side_m=0.06)
    add_block(builder, cargo, _CARGO)
    frame = Block(length - 2.3, width * 0.9, 0.45, -1.1, 0.5)
    add_block(builder, frame, _TRIM, new_part=False)
    builder.add(patch(cargo.rear, 0.49, 0.51, 0.0, 1.0), (120, 120, 116))
    for face in (cargo.left, cargo.right):
        builder.add(patch(face, 0.0, 1.0, 0.3, 0.52), PAINT)
    builder.add(patch(cargo.rear, 0.08, 0.42, 0.45, 0.6), PAINT)
    _add_rear_lamps(builder, frame.rear, tail, bottom=0.25, top=0.95, width=0.16)
    _add_wheels(builder, width, (-2.3, -3.3), 0.5)
    add_block(builder, cab, PAINT)
    builder.add(patch(cab.front, 0.06, 0.94, 0.48, 0.86), _GLASS)
    builder.add(patch(cab.left, 0.3, 0.86, 0.5, 0.86), _GLASS)
    builder.add(patch(cab.right, 0.14, 0.7, 0.5, 0.86), _GLASS)
    _add_head_lamps(builder, cab.front, head, bottom=0.06, top=0.17, width=0.16)
    _add_wheels(builder, width, (3.2,), 0.5)


def _add_bus(builder: MeshBuilder, tail: tuple[Color, float], head: float) -> None:
    length, width, height = VEHICLE_SIZES_M["bus"]
    body = Block(length, width, height - 0.32, z_m=0.32, taper_front_m=0.12, taper_rear_m=0.05, taper_side_m=0.06)
    add_block(builder, body, PAINT)
    _add_sills(builder, body, height=0.08)
    builder.add(patch(body.front, 0.05, 0.95, 0.36, 0.84), _GLASS)
    builder.add(patch(body.front, 0.2, 0.8, 0.87, 0.96), (250, 180, 60), emission=0.8)
    builder.add(patch(body.rear, 0.1, 0.9, 0.52, 0.86), _GLASS)
    builder.add(patch(body.rear, 0.3, 0.7, 0.18, 0.36), _TRIM)
    for face in (body.left, body.right):
        for window in range(6):
            builder.add(patch(face, 0.03 + window * 0.16, 0.17 + window * 0.16, 0.46, 0.84), _GLASS)
    _add_lamps(builder, body, tail, head, bottom=0.1, top=0.32, width=0.1)
    _add_wheels(builder, width, (3.4, -2.9), 0.48)


def _add_sills(builder: MeshBuilder, body: Block, height: float = 0.2) -> None:
    for face in body.walls:
        builder.add(patch(face, 0.0, 1.0, 0.0, height), _TRIM)


def _add_lamps(
    builder: MeshBuilder,
    body: Block,
    tail: tuple[Color, float],
    head: float,
    *,
    bottom: float,
    top: float,
    width: float,
) -> None:
    _add_rear_lamps(builder, body.rear, tail, bottom=bottom, top=top, width=width)
    _add_head_lamps(builder, body.front, head, bottom=bottom, top=top, width=width)
    builder.add(patch(body.rear, 0.36, 0.64, bottom * 0.8, bottom * 0.8 + 0.5 * (top - bottom)), _PLATE)


def _add_rear_lamps(
    builder: MeshBuilder, face: Floats, tail: tuple[Color, float], *, bottom: float, top: float, width: float
) -> None:
    color, emission = tail
    for left in (0.02, 0.98 - width):
        builder.add(patch(face, left, left + width, bottom, top), color, emission=emission)


def _add_head_lamps(builder: MeshBuilder, face: Floats, emission: float, *, bottom: float, top: float, width: float) -> None:
    for left in (0.03, 0.97 - width):
        builder.add(patch(face, left, left + width, bottom, top), (252, 248, 222), emission=emission)


def _add_wheels(builder: MeshBuilder, width_m: float, axles_m: tuple[float, ...], radius_m: float) -> None:
    for side, y_m in (("left", width_m / 2 + 0.015), ("right", -width_m / 2 - 0.015)):
        for x_m in axles_m:
            builder.add(disc((x_m, y_m, radius_m), radius_m, side), _TYRE)
            builder.add(disc((x_m, y_m, radius_m), radius_m * 0.55, side, 10), _RIM)
            # A strip of tread seen from the rear: without it cars float above the road.
    for side_m in (-width_m / 2 + 0.02, width_m / 2 - 0.26):
        rearmost_m = min(axles_m) - radius_m * 0.8
        builder.add(_tread(rearmost_m, side_m, radius_m), _TYRE)


def _tread(x_m: float, y_m: float, radius_m: float) -> Floats:
    return Block(0.01, 0.24, radius_m, x_m, 0.02, y_m + 0.12).rear
