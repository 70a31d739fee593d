"""Buildings, trees and street lamps along both sides of the road."""

from __future__ import annotations

import numpy as np

from .road import SIDEWALK_WIDTH_M, Road
from .scene import Prop
from .street import NUM_BUILDINGS, NUM_TREES, building_size_m

_BEGIN_M, _END_M = -55.0, 95.0
_LAMP_SPACING_M = 24.0


def place_scenery(road: Road, rng: np.random.Generator) -> tuple[Prop, ...]:
    """Props for both sides; each side in rising s."""
    props: list[Prop] = []
    for kerb_m, side in ((road.left_kerb_m, 1.0), (road.right_kerb_m, -1.0)):
        props += _buildings(road, rng, kerb_m, side)
        props += _trees(rng, kerb_m, side)
        props += _lamp_posts(rng, kerb_m, side)
    return tuple(props)


def _buildings(road: Road, rng: np.random.Generator, kerb_m: float, side: float) -> list[Prop]:
    props = []
    s_m = _BEGIN_M + float(rng.uniform(0.0, 8.0))
    while s_m < _END_M:
        variant = int(rng.integers(NUM_BUILDINGS))
        d_m = kerb_m + side * (SIDEWALK_WIDTH_M + float(rng.uniform(2.5, 6.0)))
        width_m, depth_m, _ = building_size_m(variant)
        along_m = width_m * _stretch(road, s_m, d_m + side * depth_m)
        props.append(Prop("building", s_m + along_m / 2.0, d_m, variant, faces_left=side < 0.0))
        s_m += along_m + float(rng.choice([1.0, 4.0, 10.0]))
    return props


def _stretch(road: Road, s_m: float, d_m: float) -> float:
    """How much longer a thing at d is in s than in metres: on the inside of a bend, s runs faster."""
    if s_m < road.curve_start_m - 20.0:
        return 1.0
    return 1.0 / max(0.25, 1.0 - road.curvature_per_m * d_m)


def _trees(rng: np.random.Generator, kerb_m: float, side: float) -> list[Prop]:
    places = np.arange(_BEGIN_M, _END_M, 9.0) + rng.uniform(-2.0, 2.0)
    d_m = kerb_m + side * (SIDEWALK_WIDTH_M + 1.0)
    return [Prop("tree", float(s_m), d_m, int(rng.integers(NUM_TREES))) for s_m in places if rng.random() < 0.6]


def _lamp_posts(rng: np.random.Generator, kerb_m: float, side: float) -> list[Prop]:
    places = np.arange(_BEGIN_M, _END_M, _LAMP_SPACING_M) + rng.uniform(0.0, _LAMP_SPACING_M)
    return [Prop("lamp_post", float(s_m), kerb_m + side * 0.5, faces_left=side < 0.0) for s_m in places]
