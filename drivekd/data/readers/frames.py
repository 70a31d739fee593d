"""Which pictures a frame has, for data sets that name frames alone. A file of frames is one of

DriveLM or DriveBench records     every frame that they ask about
nuScenes' sample_data.json        the table of v1.0-trainval: key frames of the six cameras
{"FRAME": {"CAM_FRONT": "path", ...}, ...}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drivekd.camera_order import cameras_in_paths
from drivekd.errors import DataError
from drivekd.sample import CAMERAS

from .formats import detect
from .json_stream import Element, elements, members, shape

Frames = dict[str, dict[str, str]]  # frame token -> camera -> path as written


def read_frames(path: Path) -> Frames:
    """Raises DataError for a file that names no frame's pictures."""
    found: Frames = {}
    if shape(path) == "object":
        items = list(members(path)) if detect(path, strict=False) is None else _drivelm(path)
        for frame, pictures in items:
            found.update(_one(frame, pictures))
    else:
        for element in elements(path):
            if element.fault:
                raise DataError(f"{path}, record {element.number}: {element.fault}")
            for frame, pictures in _row(element):
                found.setdefault(frame, {}).update(pictures)
    if not found:
        raise DataError(
            f"{path}: names no pictures of frames; give DriveLM or DriveBench records, nuScenes' sample_data.json, "
            'or {"FRAME": {"CAM_FRONT": "path"}}'
        )
    return found


def _drivelm(path: Path) -> Iterator[tuple[str, object]]:
    for _, scene in members(path):
        frames = scene.get("key_frames") if isinstance(scene, dict) else None
        for frame, fields in (frames if isinstance(frames, dict) else {}).items():
            yield frame, fields.get("image_paths") if isinstance(fields, dict) else None


def _one(frame: str, pictures: object) -> Frames:
    if not isinstance(pictures, dict):
        return {}
    known = {camera: path for camera, path in pictures.items() if camera in CAMERAS and isinstance(path, str) and path}
    return {frame: known} if known else {}


def _row(element: Element) -> Iterator[tuple[str, dict[str, str]]]:
    """A DriveBench record, or a row of nuScenes' sample_data."""
    row = element.value
    if not isinstance(row, dict):
        return
    if isinstance(row.get("frame_token"), str):
        yield from _one(row["frame_token"], row.get("image_path")).items()
    name, frame = row.get("filename"), row.get("sample_token")
    if isinstance(name, str) and isinstance(frame, str) and row.get("is_key_frame") is True:
        yield from ((frame, {camera: name}) for camera in cameras_in_paths((name,)))
