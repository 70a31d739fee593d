"""A scene as one mesh, and as plain solids for telling which pixel shows which actor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .mesh import Ints, Mesh, MeshBuilder, join_meshes
from .people import person_mesh
from .road import Floats
from .scene import PAINTS, Actor, Prop, Scene
from .shapes import Block, add_block
from .street import SIGNAL_HOUSING_M, building_mesh, building_size_m, lamp_post_mesh, signal_mesh, tree_mesh
from .vehicles import vehicle_mesh

SIGNAL_ID = 255


@dataclass(frozen=True)
class Pose:
    """Where a mesh goes: world x, y in metres, yaw counter-clockwise from +x."""

    x_m: float
    y_m: float
    yaw_rad: float


def actor_pose(scene: Scene, actor: Actor) -> Pose:
    """Vehicles stand along the road; people are flat and face the ego vehicle."""
    x_m, y_m = scene.road.to_world(actor.s_m, actor.d_m)
    if not actor.is_vehicle:
        return Pose(x_m, y_m, float(np.arctan2(y_m, x_m)))
    return Pose(x_m, y_m, scene.road.heading_rad(actor.s_m) + (np.pi if actor.oncoming else 0.0))


@lru_cache(maxsize=2)  # the cameras of one frame share it
def scene_mesh(scene: Scene) -> Mesh:
    """Everything above the ground."""
    meshes = [_prop_mesh(scene, prop) for prop in scene.props]
    meshes += [_actor_mesh(scene, actor) for actor in scene.actors]
    if scene.signal_m is not None:
        pose = _signal_pose(scene, scene.signal_m)
        mesh = signal_mesh(scene.signal, signal_bottom_m(scene.signal_m), scene.road.right_kerb_m - 0.5)
        meshes.append(mesh.placed(pose.x_m, pose.y_m, pose.yaw_rad))
    return join_meshes(meshes)


@lru_cache(maxsize=2)
def solid_mesh(scene: Scene) -> tuple[Mesh, Ints]:
    """Boxes around all that can hide an actor; ids [P] of the parts: 1 + index of the actor, 0 building, SIGNAL_ID."""
    solids, ids = [_backdrop()], [0]
    for prop in scene.props:
        if prop.kind == "building":
            width_m, depth_m, height_m = building_size_m(prop.variant)
            solids.append(_placed(_solid(depth_m, width_m, height_m, -depth_m / 2.0), _prop_pose(scene, prop)))
            ids.append(0)
    for index, actor in enumerate(scene.actors):
        solids.append(_placed(_solid(*actor.size_m), actor_pose(scene, actor)))
        ids.append(index + 1)
    if scene.signal_m is not None:
        width_m, height_m = SIGNAL_HOUSING_M
        housing = _solid(0.3, width_m, height_m, 0.15, signal_bottom_m(scene.signal_m))
        solids.append(_placed(housing, _signal_pose(scene, scene.signal_m)))
        ids.append(SIGNAL_ID)
    return join_meshes(solids), np.array(ids)


def signal_bottom_m(signal_m: float) -> float:
    """Height of the housing's underside: higher when farther, so that no near bus hides it and the frame holds it."""
    return 1.6 + 0.19 * signal_m


def signal_position_m(scene: Scene, height_m: float) -> Floats:
    """World point [3] at that height on the signal's face, above the ego lane."""
    assert scene.signal_m is not None
    pose = _signal_pose(scene, scene.signal_m)
    return np.array([pose.x_m, pose.y_m, height_m])


def lamp_positions_m(scene: Scene) -> Floats:
    """World points [N, 3] of the lit heads of the street lamps."""
    points = []
    for prop in scene.props:
        if prop.kind == "lamp_post":
            pose = _prop_pose(scene, prop)
            points.append([pose.x_m + 1.3 * np.cos(pose.yaw_rad), pose.y_m + 1.3 * np.sin(pose.yaw_rad), 6.3])
    return np.array(points).reshape(-1, 3)


def _signal_pose(scene: Scene, signal_m: float) -> Pose:
    return Pose(*scene.road.to_world(signal_m, 0.0), scene.road.heading_rad(signal_m))


def _actor_mesh(scene: Scene, actor: Actor) -> Mesh:
    pose = actor_pose(scene, actor)
    dark = scene.daylight != "day"
    mesh = vehicle_mesh(actor.kind, actor.braking, dark) if actor.is_vehicle else person_mesh(actor.kind, actor.stride)
    return mesh.placed(pose.x_m, pose.y_m, pose.yaw_rad, PAINTS[actor.color])


def _prop_mesh(scene: Scene, prop: Prop) -> Mesh:
    dark = scene.daylight != "day"
    if prop.kind == "building":
        mesh = building_mesh(prop.variant, dark)
    elif prop.kind == "tree":
        mesh = tree_mesh(prop.variant)
    else:
        mesh = lamp_post_mesh(dark)
    return _placed(mesh, _prop_pose(scene, prop))


def _prop_pose(scene: Scene, prop: Prop) -> Pose:
    x_m, y_m = scene.road.to_world(prop.s_m, prop.d_m)
    if prop.kind == "tree":
        return Pose(x_m, y_m, float(np.arctan2(y_m, x_m)))
    turn = np.pi / 2.0 if prop.faces_left else -np.pi / 2.0
    return Pose(x_m, y_m, scene.road.heading_rad(prop.s_m) + turn)


def _placed(mesh: Mesh, pose: Pose) -> Mesh:
    return mesh.placed(pose.x_m, pose.y_m, pose.yaw_rad)


@lru_cache(maxsize=256)
def _solid(length_m: float, width_m: float, height_m: float, x_m: float = 0.0, z_m: float = 0.0) -> Mesh:
    builder = MeshBuilder()
    add_block(builder, Block(length_m, width_m, height_m, x_m, z_m), (0, 0, 0))
    return builder.build()


@lru_cache(maxsize=1)
def _backdrop() -> Mesh:
    """A far solid, so that a scene without buildings and actors still has a mesh."""
    return _solid(1.0, 1.0, 1.0).placed(-900.0, 0.0, 0.0)
