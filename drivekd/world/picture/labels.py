"""Exact boxes: what a camera shows of each actor, counted in an id buffer that is painted like the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from drivekd.world.scene.assembly import SIGNAL_ID, solid_mesh
from drivekd.world.scene.scene import Actor, Scene

from .camera import Camera
from .polygons import face_polygons, visible_faces

IdBuffer = npt.NDArray[np.uint8]
Polygons = list[list[float]]

_MIN_VISIBLE_SHARE = 0.3
_MIN_VISIBLE_PX = 40  # of 320 x 180; smaller things carry no answer at 112 x 112


@dataclass(frozen=True)
class Label:
    """One actor as one camera sees it.

    actor: index into scene.actors. box_px: left, top, right, bottom of what is within the picture, hidden or not.
    center: of that box, 0..1. visibility: share of the actor's pixels in the picture that nothing hides.
    """

    actor: int
    camera: str
    box_px: tuple[int, int, int, int]
    center: tuple[float, float]
    visible_px: int
    visibility: float


@dataclass(frozen=True)
class Sight:
    """What a camera sees. ids: [H, W]; 0 background, 1 + index of the visible actor, SIGNAL_ID.

    labels: of actors that are seen well enough to ask about, in scene order. signal_visibility: 0 where there is none.
    """

    ids: IdBuffer
    labels: tuple[Label, ...]
    signal_visibility: float


def look(scene: Scene, camera: Camera) -> Sight:
    """Everything that `camera` sees of the scene's actors and of its signal."""
    mesh, part_ids = solid_mesh(scene)
    faces = visible_faces(mesh, camera)
    polygons = list(face_polygons(mesh, camera, faces))
    face_ids: list[int] = part_ids[mesh.part[faces]].tolist()
    by_id: dict[int, Polygons] = {}
    for polygon, face_id in zip(polygons, face_ids, strict=True):
        by_id.setdefault(face_id, []).append(polygon)
    ids = np.asarray(_painted(camera, polygons, face_ids))
    counts: list[int] = np.bincount(ids.ravel(), minlength=SIGNAL_ID + 1).tolist()
    labels = _labels(camera, by_id, counts)
    signal = _visibility(_mask(camera, by_id[SIGNAL_ID]), counts[SIGNAL_ID]) if SIGNAL_ID in by_id else 0.0
    return Sight(ids, tuple(labels), signal)


def describe_actor(actor: Actor) -> str:
    """Its colour and kind: "white van"."""
    return f"{actor.color} {actor.kind}"


def _labels(camera: Camera, by_id: dict[int, Polygons], counts: list[int]) -> list[Label]:
    min_px = _MIN_VISIBLE_PX * camera.width_px * camera.height_px / (320 * 180)
    labels = []
    for actor_id, polygons in sorted(by_id.items()):
        if actor_id not in (0, SIGNAL_ID) and counts[actor_id] >= min_px:
            label = _label(actor_id - 1, camera, _mask(camera, polygons), counts[actor_id])
            if label.visibility >= _MIN_VISIBLE_SHARE:
                labels.append(label)
    return labels


def _label(actor: int, camera: Camera, mask: Image.Image, visible_px: int) -> Label:
    box_px = mask.getbbox()
    assert box_px is not None, "something visible has pixels"
    left, top, right, bottom = box_px
    center = ((left + right) / 2.0 / camera.width_px, (top + bottom) / 2.0 / camera.height_px)
    return Label(actor, camera.name, box_px, center, visible_px, _visibility(mask, visible_px))


def _mask(camera: Camera, polygons: Polygons) -> Image.Image:
    """One thing alone, as if nothing hid it: 1 where it is."""
    return _painted(camera, polygons, [1] * len(polygons))


def _visibility(mask: Image.Image, visible_px: int) -> float:
    return visible_px / max(1, int(np.asarray(mask).sum()))


def _painted(camera: Camera, polygons: Polygons, values: list[int]) -> Image.Image:
    image = Image.new("L", (camera.width_px, camera.height_px))
    draw = ImageDraw.Draw(image)
    for polygon, value in zip(polygons, values, strict=True):
        if polygon:
            draw.polygon(polygon, fill=value)
    return image
