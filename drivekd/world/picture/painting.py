"""One picture of one camera: sky and ground per pixel, polygons from far to near, then the lens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from drivekd.world.scene.assembly import scene_mesh
from drivekd.world.scene.scene import Scene

from .camera import Camera, make_camera
from .ground import first_ground_row, paint_ground
from .labels import Label, look
from .lens import expose
from .light import Light, scene_light, shaded_colors
from .noise import Texture
from .polygons import face_polygons, visible_faces
from .shadows import shadow_mask
from .sky import paint_sky

Picture = npt.NDArray[np.uint8]

DEFAULT_SUPERSAMPLE = 2


def render_frame(
    scene: Scene, camera: str, size_px: tuple[int, int], supersample: int = DEFAULT_SUPERSAMPLE
) -> tuple[Picture, list[Label]]:
    """The picture uint8 [H, W, 3] of size_px (width, height), and the labels of the actors in it.

    supersample: polygons are drawn this many times larger and averaged; the ground needs none.
    """
    eye = make_camera(camera, size_px)
    light = scene_light(scene)
    image = _with_polygons(_backdrop(scene, eye, light), scene, eye, light, supersample)
    sight = look(scene, eye)
    exposed = expose(image, scene, eye, sight.ids)
    return np.clip(exposed, 0.0, 255.0).astype(np.uint8), list(sight.labels)


def _backdrop(scene: Scene, camera: Camera, light: Light) -> Picture:
    first_row = first_ground_row(camera)
    sky = paint_sky(scene, camera, light, first_row)
    ground = paint_ground(scene, camera, light, shadow_mask(scene, camera)[first_row:])
    picture: Picture = np.clip(np.concatenate([sky, ground]), 0.0, 255.0).astype(np.uint8)
    return picture


def _with_polygons(image: Picture, scene: Scene, camera: Camera, light: Light, supersample: int) -> Texture:
    canvas = Image.fromarray(image)
    if supersample > 1:
        canvas = canvas.resize((camera.width_px * supersample, camera.height_px * supersample), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    mesh = scene_mesh(scene)
    faces = visible_faces(mesh, camera)
    colors = shaded_colors(mesh, faces, camera, light).tolist()
    for polygon, color in zip(face_polygons(mesh, camera, faces, supersample), colors, strict=True):
        if polygon:
            draw.polygon(polygon, fill=tuple(color))
    return np.asarray(canvas.reduce(supersample) if supersample > 1 else canvas, np.float32).copy()
