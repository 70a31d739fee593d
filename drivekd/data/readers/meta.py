"""`meta` of a Drive-KD record: what else is known of the question. Each key is optional; an unknown one is a fault, since a
misspelt "scene" would silently mix training and test scenes.

    {"kind", "topic", "scene", "frame", "cameras", "ego_speed_mps", "id", "tag", "hop"}      id, tag, hop: the data set's own
"""

from __future__ import annotations

from typing import Any

from drivekd.data.json_file import json_type
from drivekd.sample import CAMERAS

from .problem import Faults
from .turns import found

META_KEYS = ("kind", "topic", "scene", "frame", "cameras", "ego_speed_mps", "id", "tag", "hop")
_FASTEST_MPS = 1000.0  # more is no car, and infinity no number


def checked_meta(value: object, num_images: int, faults: Faults) -> dict[str, Any]:
    """`value` as an object, its faults added; empty when it is none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        faults.add("meta", f"meta: expected an object, found {json_type(value)}")
        return {}
    for key in sorted(value.keys() - META_KEYS):
        faults.add("meta", f"meta.{key}: unknown key; known are {', '.join(META_KEYS)}")
    for key in ("topic", "scene", "frame", "id"):
        if not isinstance(value.get(key, ""), str):
            faults.add("meta", f"meta.{key}: expected a string, found {json_type(value[key])}")
    _check_cameras(value.get("cameras"), num_images, faults)
    _check_numbers(value, faults)
    return value


def _check_numbers(value: dict[str, Any], faults: Faults) -> None:
    tag = value.get("tag", [])
    if not isinstance(tag, list) or any(type(number) is not int for number in tag):
        faults.add("meta", f"meta.tag: expected an array of whole numbers, found {found(tag)}")
    hop = value.get("hop", 0)
    if type(hop) is not int:
        faults.add("meta", f"meta.hop: expected a whole number, found {found(hop)}")
    speed = value.get("ego_speed_mps", 0.0)
    if isinstance(speed, bool) or not isinstance(speed, int | float):
        faults.add("meta", f"meta.ego_speed_mps: expected metres per second, found {found(speed)}")
    elif abs(speed) > _FASTEST_MPS or speed != speed:
        faults.add("meta", f"meta.ego_speed_mps: expected metres per second, found {speed:g}")


def _check_cameras(value: object, num_images: int, faults: Faults) -> None:
    if value is None:
        return
    if not isinstance(value, list) or any(camera not in CAMERAS for camera in value):
        faults.add("meta", f"meta.cameras: expected names out of {', '.join(CAMERAS)}; found {found(value)}")
    elif len(value) != num_images:
        faults.add("meta", f"meta.cameras: {len(value)} named for {num_images} images")
    elif len(set(value)) != len(value):
        faults.add("meta", f"meta.cameras: one camera is named twice: {found(value)}")
