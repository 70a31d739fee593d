"""Painter's order of convex parts: what may hide something is painted after it.

Sorting by distance fails for long vehicles. Two disjoint convex footprints always have a separating line along one of
their edges; the one on the camera's side of it is in front. These pairwise answers are then sorted topologically.
"""

from __future__ import annotations

import numpy as np

from drivekd.world.scene.mesh import Bools, Ints
from drivekd.world.scene.road import Floats

_TOUCH_M = 0.02  # neighbours may touch


def painter_order(footprints_m: Floats, eye_m: tuple[float, float]) -> list[int]:
    """Indices of footprints [P, 4, 2] (convex, counter-clockwise), farthest first, as seen from `eye_m`."""
    nearest_m = np.hypot(*np.moveaxis(footprints_m - np.array(eye_m), -1, 0)).min(axis=1)  # [P]
    behind = _behind(footprints_m, eye_m)
    num_behind = behind.sum(axis=1)  # how many parts must be painted before each
    pending = list(np.argsort(-nearest_m, kind="stable"))
    order: list[int] = []
    while pending:
        # Interpenetrating parts can form a cycle: then the farthest goes first.
        ready = next((part for part in pending if num_behind[part] == 0), pending[0])
        pending.remove(ready)
        order.append(int(ready))
        num_behind = num_behind - behind[:, ready]
    return order


def _behind(footprints_m: Floats, eye_m: tuple[float, float]) -> Bools:
    """[P, P]: column part lies behind row part."""
    outside, eye_outside = _outside_edges(footprints_m, eye_m)
    eye_outside = eye_outside[:, :, None]  # [P, 4, 1]
    # An edge of the row part with the column part on its far side, and the eye on the row's side: the row is in front.
    row_in_front = (outside & ~eye_outside).any(axis=1)
    column_in_front = (outside & eye_outside).any(axis=1)
    behind = np.logical_or(row_in_front, column_in_front.T)
    return np.logical_and(behind, ~behind.T)


def _outside_edges(footprints_m: Floats, eye_m: tuple[float, float]) -> tuple[Bools, Bools]:
    """[P, 4, P]: whole column part beyond that edge of the row part; [P, 4]: the eye beyond that edge."""
    along = np.roll(footprints_m, -1, axis=1) - footprints_m
    normals = np.stack([along[..., 1], -along[..., 0]], axis=-1) / np.linalg.norm(along, axis=-1, keepdims=True)
    reach = (normals * footprints_m).sum(axis=-1)  # [P, 4]
    flat = normals.reshape(-1, 2) @ footprints_m.reshape(-1, 2).T  # [P * 4, P * 4]
    distance = flat.reshape(*reach.shape, len(footprints_m), 4) - reach[:, :, None, None]
    eye_distance = normals @ np.array(eye_m) - reach
    return (distance >= -_TOUCH_M).all(axis=-1), eye_distance > 0.0


def order_of_faces(part: Ints, order: list[int]) -> Ints:
    """Face indices sorted by their part's place in `order`, keeping the order within a part."""
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    return np.argsort(rank[part], kind="stable")
