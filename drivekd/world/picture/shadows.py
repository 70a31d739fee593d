"""Shadows on the ground: the outline of each box, moved along the sun's rays."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from drivekd.world.scene.assembly import actor_pose
from drivekd.world.scene.road import Floats
from drivekd.world.scene.scene import Actor, Scene

from .camera import Camera
from .noise import Texture
from .polygons import quad_polygons

_FALL = (0.34, -0.28)  # how far a shadow falls forwards and to the left, per metre of height
_MAX_HEIGHT_M = 2.2  # of the part that casts one: longer shadows would hide the lane marks
_TREE_CROWN_M = 1.6


def shadow_mask(scene: Scene, camera: Camera) -> Texture:
    """[H, W]: 1 in the shade, 0 in the open, soft at the edges."""
    quads = [_actor_shadow(scene, actor) for actor in scene.actors]
    quads += [_tree_shadow(*scene.road.to_world(prop.s_m, prop.d_m)) for prop in scene.props if prop.kind == "tree"]
    mask = Image.new("L", (camera.width_px, camera.height_px))
    draw = ImageDraw.Draw(mask)
    for polygon in quad_polygons(np.concatenate(quads), camera) if quads else ():
        draw.polygon(polygon, fill=255)
    blurred = mask.filter(ImageFilter.BoxBlur(camera.width_px / 320.0))
    return np.asarray(blurred, np.float32) / np.float32(255.0)


def _actor_shadow(scene: Scene, actor: Actor) -> Floats:
    """[6, 4, 3]: the footprint, the roof's outline on the ground, and the four quads between them."""
    pose = actor_pose(scene, actor)
    length_m, width_m, height_m = actor.size_m
    length_m = length_m if actor.is_vehicle else 0.3
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length_m / 2.0, width_m / 2.0]
    cos, sin = np.cos(pose.yaw_rad), np.sin(pose.yaw_rad)
    base = corners @ np.array([[cos, sin], [-sin, cos]]) + [pose.x_m, pose.y_m]
    roof = base + np.array(_FALL) * min(height_m, _MAX_HEIGHT_M)
    sides = [np.stack([base[i - 1], base[i], roof[i], roof[i - 1]]) for i in range(4)]
    return _on_ground(np.stack([base, roof, *sides]))


def _tree_shadow(x_m: float, y_m: float) -> Floats:
    turn = np.arange(4) * (np.pi / 2.0) + np.array([[0.0], [np.pi / 4.0]])  # two squares make a rough disc
    disc = np.stack([np.cos(turn), np.sin(turn)], axis=-1) * _TREE_CROWN_M
    return _on_ground(disc + np.array([x_m, y_m]) + np.array(_FALL) * 3.0)


def _on_ground(points: Floats) -> Floats:
    return np.concatenate([points, np.zeros((*points.shape[:-1], 1))], axis=-1)
