"""Object tags `<c1,CAM_FRONT,x,y>` inside questions and answers.

Files write x, y in pixels of 1600x900 or normalised to 0..1. Which one is decided once for a file, never for a tag:
otherwise a wrong normalised 4.32 would pass as a pixel. drivekd keeps tags normalised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from drivekd.sample import CAMERAS

CoordinateStyle = Literal["normalized", "pixel"]

FRAME_WIDTH_PX, FRAME_HEIGHT_PX = 1600, 900  # nuScenes cameras, in whose pixels DriveLM's tags are
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_TAG = re.compile(rf"<\s*(c\d+)\s*,\s*(CAM_[A-Z_]+)\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*>")
_OPENING = re.compile(r"<\s*c(?![A-Za-z])[^<>]{0,60}>?|<\s*$")
_CAMERA_IN_OPENING = re.compile(r"<\s*c\d+\s*,\s*(CAM_[A-Z_]+)")


@dataclass(frozen=True)
class Tag:
    """One well-formed tag; x, y normalised to 0..1 of the camera's image."""

    object_id: str
    camera: str
    x: float
    y: float


def coordinate_style(texts: Iterable[str]) -> CoordinateStyle:
    """How one file writes its tags: "pixel" when x and y both exceed 1 in more than half of them."""
    pairs = [(float(m[3]), float(m[4])) for text in texts for m in _TAG.finditer(text)]
    num_large = sum(x > 1 and y > 1 for x, y in pairs)
    return "pixel" if 2 * num_large > len(pairs) else "normalized"


def find_tags(text: str, style: CoordinateStyle = "normalized") -> list[Tag]:
    """The well-formed tags of `text` in order, without those of an unknown camera or with a point outside the image."""
    return [tag for match in _TAG.finditer(text) if (tag := _tag_from_match(match, style)) is not None]


def malformed_tags(text: str, style: CoordinateStyle = "normalized") -> list[str]:
    """The pieces of `text` that open a tag and are none: cut, unknown camera, coordinate outside the image."""
    pieces = []
    for opening in _OPENING.finditer(text):
        match = _TAG.match(text, opening.start())
        if match is None or _tag_from_match(match, style) is None:
            pieces.append(opening.group())
    return pieces


def normalize_tags(text: str, style: CoordinateStyle) -> str:
    """`text` with its well-formed pixel tags written normalised (four decimals, as Drive-KD's); all else verbatim."""

    def rewrite(match: re.Match[str]) -> str:
        tag = _tag_from_match(match, style)
        return match.group() if tag is None else f"<{tag.object_id},{tag.camera},{tag.x:.4f},{tag.y:.4f}>"

    return _TAG.sub(rewrite, text) if style == "pixel" else text


def cameras_named(text: str) -> tuple[str, ...]:
    """Cameras that the tags of `text` name, cut tags included, in the order of CAMERAS."""
    named = set(_CAMERA_IN_OPENING.findall(text))
    return tuple(camera for camera in CAMERAS if camera in named)


def _tag_from_match(match: re.Match[str], style: CoordinateStyle) -> Tag | None:
    x, y = float(match[3]), float(match[4])
    if style == "pixel":
        x, y = x / FRAME_WIDTH_PX, y / FRAME_HEIGHT_PX
    if match[2] not in CAMERAS or not (0 <= x <= 1 and 0 <= y <= 1):
        return None
    return Tag(match[1], match[2], x, y)
