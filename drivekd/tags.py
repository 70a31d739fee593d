"""The one grammar of object tags, `<c1,CAM_FRONT,x,y>`, inside questions and answers: of records, and of what a car's model says.

x, y are pixels of 1600x900 or normalised to 0..1. Which one is decided once for all texts of one writer, a file of records or the
model that answered a frame, and never for a tag: otherwise a wrong normalised 4.32 would pass as a pixel. So every reader is told
the style. drivekd keeps tags normalised.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from drivekd.sample import CAMERAS

CoordinateStyle = Literal["normalized", "pixel"]

FRAME_WIDTH_PX, FRAME_HEIGHT_PX = 1600, 900  # nuScenes cameras, in whose pixels DriveLM's tags are
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_START = r"<\s*(c\d+)\s*,\s*([A-Za-z_]\w*)"  # any name: a car's cameras are called as its owner likes
_TAG = re.compile(rf"{_START}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*>")
_OPENING = re.compile(r"<\s*c(?![A-Za-z])[^<>]{0,60}>?|<\s*$")
_CUT_TAG = re.compile(_START)


@dataclass(frozen=True)
class Tag:
    """x, y: normalised to 0..1 of the camera's image."""

    object_id: str
    camera: str
    x: float
    y: float


def coordinate_style(texts: Iterable[str]) -> CoordinateStyle:
    """How one writer writes its tags: "pixel" when x and y both exceed 1 in more than half of them. texts: all there are."""
    vote = StyleVote()
    vote.add(*texts)
    return vote.style


class StyleVote:
    """coordinate_style of texts that come one by one."""

    def __init__(self) -> None:
        self._tags = self._large = 0

    def add(self, *texts: str) -> None:
        """Count the tags of texts of the writer."""
        for text in texts:
            if "<" in text:
                for match in _TAG.finditer(text):
                    self._tags += 1
                    self._large += float(match[3]) > 1 and float(match[4]) > 1

    @property
    def style(self) -> CoordinateStyle:
        """Of what was added so far."""
        return "pixel" if 2 * self._large > self._tags else "normalized"


def has_tags(text: str) -> bool:
    """Whether there is a whole tag, whatever its camera and place."""
    return _TAG.search(text) is not None


def find_tags(text: str, style: CoordinateStyle = "normalized", *, cameras: Collection[str] | None = CAMERAS) -> list[Tag]:
    """The well-formed tags of `text` in order, without those of a camera not in `cameras` (None: every name is one), and without
    those of a point outside the image."""
    tags = (_tag_from_match(match, style) for match in _TAG.finditer(text))
    return [tag for tag in tags if _is_good(tag, cameras)]


def malformed_tags(text: str, style: CoordinateStyle = "normalized") -> list[str]:
    """The pieces of `text` that open a tag and are none: cut, unknown camera, coordinate outside the image."""
    pieces = []
    for opening in _OPENING.finditer(text):
        match = _TAG.match(text, opening.start())
        if match is None or not _is_good(_tag_from_match(match, style), CAMERAS):
            pieces.append(opening.group())
    return pieces


def has_tag_form(piece: str) -> bool:
    """Whether a piece is a whole tag by its form: identity, a camera's name and two numbers, whatever these are."""
    return _TAG.fullmatch(piece) is not None


def normalize_tags(text: str, style: CoordinateStyle) -> str:
    """`text` with its well-formed pixel tags written normalised (four decimals, as Drive-KD's); all else verbatim."""

    def rewrite(match: re.Match[str]) -> str:
        tag = _tag_from_match(match, style)
        return f"<{tag.object_id},{tag.camera},{tag.x:.4f},{tag.y:.4f}>" if _is_good(tag, CAMERAS) else match.group()

    return _TAG.sub(rewrite, text) if style == "pixel" else text


def pixel_tags(text: str) -> str:
    """`text` with its well-formed normalised tags written in pixels (one decimal, as DriveLM's); all else verbatim."""

    def rewrite(match: re.Match[str]) -> str:
        tag = _tag_from_match(match, "normalized")
        pixels = f"{tag.x * FRAME_WIDTH_PX:.1f},{tag.y * FRAME_HEIGHT_PX:.1f}"
        return f"<{tag.object_id},{tag.camera},{pixels}>" if _is_good(tag, CAMERAS) else match.group()

    return _TAG.sub(rewrite, text)


def without_tags(text: str) -> str:
    """`text` with every tag as its object's id: what a person reads beside the marks."""
    return _TAG.sub(lambda tag: tag[1], text)


def cameras_named(text: str) -> tuple[str, ...]:
    """Cameras that the tags of `text` name, cut tags included, in the order of CAMERAS."""
    named = {match[2] for match in _CUT_TAG.finditer(text)}
    return tuple(camera for camera in CAMERAS if camera in named)


def _tag_from_match(match: re.Match[str], style: CoordinateStyle) -> Tag:
    x, y = float(match[3]), float(match[4])
    if style == "pixel":
        x, y = x / FRAME_WIDTH_PX, y / FRAME_HEIGHT_PX
    return Tag(match[1], match[2], x, y)


def _is_good(tag: Tag, cameras: Collection[str] | None) -> bool:
    return (cameras is None or tag.camera in cameras) and 0 <= tag.x <= 1 and 0 <= tag.y <= 1
