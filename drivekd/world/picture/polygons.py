"""From a mesh to polygons on a picture: culled, sorted, clipped, in pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from drivekd.world.scene.mesh import Bools, Ints, Mesh
from drivekd.world.scene.road import Floats

from .camera import NEAR_M, Camera, clip_near
from .order import order_of_faces, painter_order

_MAX_PX = 5000.0  # a polygon that leaves the picture by more than this is cut there


def visible_faces(mesh: Mesh, camera: Camera) -> Ints:
    """Indices of the faces that may be seen from `camera`, in the order in which to paint them."""
    seen = _facing(mesh, camera) & _in_view(mesh, camera)
    order = order_of_faces(mesh.part, painter_order(mesh.footprints_m, camera.position_m[:2]))
    return order[seen[order]]


def face_polygons(mesh: Mesh, camera: Camera, faces: Ints, scale: float = 1.0) -> Iterator[list[float]]:
    """For each of `faces`, its x0, y0, x1, y1 ... in pixels times `scale`; empty when it is behind the camera."""
    points = camera.to_camera(mesh.vertices_m)  # [T, 3]
    in_front = points[:, 2] > NEAR_M
    safe = np.where(in_front[:, None], points, np.array([0.0, 0.0, 1.0]))
    pixels = np.clip(camera.to_pixels(safe) * scale, -_MAX_PX, _MAX_PX)
    whole = np.logical_and.reduceat(in_front, mesh.starts)
    starts, ends = mesh.starts.tolist(), (mesh.starts + mesh.num_vertices).tolist()
    for face in faces.tolist():
        if whole[face]:
            yield pixels[starts[face] : ends[face]].ravel().tolist()
            continue
        clipped = clip_near(points[starts[face] : ends[face]])
        cut = np.clip(camera.to_pixels(clipped) * scale, -_MAX_PX, _MAX_PX)
        yield cut.ravel().tolist() if len(cut) >= 3 else []


def _facing(mesh: Mesh, camera: Camera) -> Bools:
    """[M]: the face's outside is towards the camera."""
    to_eye = np.array(camera.position_m) - mesh.vertices_m[mesh.starts]
    outward: Floats = (to_eye * mesh.normals).sum(axis=1)
    facing: Bools = np.logical_or(mesh.two_sided, outward > 0.0)
    return facing


def _in_view(mesh: Mesh, camera: Camera) -> Bools:
    """[M]: for each border of the picture, some vertex lies on its inner side."""
    points = camera.to_camera(mesh.vertices_m)
    forward = np.maximum(points[:, 2], NEAR_M)
    center_x, center_y = camera.center_px
    across, down = points[:, 0] * camera.focal_px, points[:, 1] * camera.focal_px
    inside = np.stack(
        [
            points[:, 2] > NEAR_M,
            across > -center_x * forward,
            across < (camera.width_px - center_x) * forward,
            down > -center_y * forward,
            down < (camera.height_px - center_y) * forward,
        ]
    )
    some_vertex: Bools = np.logical_or.reduceat(inside, mesh.starts, axis=1)  # [5, M]
    in_view: Bools = np.logical_and.reduce(some_vertex, axis=0)
    return in_view


def quad_polygons(quads_m: Floats, camera: Camera) -> list[list[float]]:
    """World quads [K, 4, 3] as flat pixel lists, without culling or sorting; those behind the camera are left out."""
    polygons = []
    for quad in camera.to_camera(quads_m):
        if quad[:, 2].max() > NEAR_M:
            pixels = camera.to_pixels(clip_near(quad) if quad[:, 2].min() <= NEAR_M else quad)
            polygons.append(np.clip(pixels, -_MAX_PX, _MAX_PX).ravel().tolist())
    return polygons
