"""Rings, boxes and name plates on a camera picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw

from .marks import Mark
from .style import BACKGROUND, Box, Rgb, Style, font

SMOOTHING = 4  # Pillow draws hard edges: shapes are drawn this much larger and reduced


def draw_marks(picture: Image.Image, marks: Sequence[tuple[Mark, Rgb]], style: Style) -> None:
    """Draw every mark, then its name where it hides no other name or mark. Far objects (high in the picture) first."""
    placed: list[Box] = []
    ordered = sorted(marks, key=lambda marked: marked[0].y)
    for mark, color in ordered:
        _draw_shape(picture, mark, color, style)
    shapes = [_shape_box(picture, mark, style) for mark, _ in ordered]
    for index, (mark, color) in enumerate(ordered):
        taken = [*placed, *shapes[:index], *shapes[index + 1 :]]
        placed.append(_draw_name(picture, mark, color, style, taken))


def draw_plate(picture: Image.Image, box: Box, text: str, color: Rgb, size_px: int) -> None:
    """Dark letters on a coloured plate."""
    left, top, right, bottom = (round(edge) for edge in box)
    _paste(picture, _plate(right - left, bottom - top), left, top, color)
    ImageDraw.Draw(picture).text(((left + right) / 2, (top + bottom) / 2), text, font=font(size_px), fill=BACKGROUND, anchor="mm")


def plate_size(text: str, size_px: int) -> tuple[int, int]:
    """Width and height of a plate with this text."""
    return max(round(font(size_px).getlength(text) + 0.7 * size_px), round(1.3 * size_px)), round(1.3 * size_px)


def _draw_shape(picture: Image.Image, mark: Mark, color: Rgb, style: Style) -> None:
    """A ring around a point, or a box; each on a dark edge, so that it is seen on bright sky and dark road alike."""
    line_px = max(2, round(style.text_px / 7))
    if mark.box is None:
        radius = _radius(style)
        for shade, width, size in ((BACKGROUND, line_px + 3, radius + 1.5), (color, line_px, radius)):
            ring = _ring(round(2 * size) + 1, width)
            _paste(
                picture,
                ring,
                round(mark.x * picture.width - ring.width / 2),
                round(mark.y * picture.height - ring.height / 2),
                shade,
            )
        return
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = _pixels(mark.box, picture)
    draw.rounded_rectangle((left - 1, top - 1, right + 1, bottom + 1), 4, outline=BACKGROUND, width=line_px + 2)
    draw.rounded_rectangle((left, top, right, bottom), 4, outline=color, width=line_px)


def _draw_name(picture: Image.Image, mark: Mark, color: Rgb, style: Style, taken: Sequence[Box]) -> Box:
    width, height = plate_size(mark.name, style.small_px)
    places = [(left, top, left + width, top + height) for left, top in _corners(picture, mark, style, width, height)]
    inside = [box for box in places if _within(box, picture)] or places
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    box = (free or inside)[0]
    draw_plate(picture, box, mark.name, color, style.small_px)
    return box


def _corners(picture: Image.Image, mark: Mark, style: Style, width: int, height: int) -> Iterator[tuple[float, float]]:
    """Left upper corners of a name plate around a mark, best first."""
    if mark.box is not None:
        left, top, right, bottom = _pixels(mark.box, picture)
        yield from ((left, top - height - 2), (left, bottom + 3), (left + 3, top + 3), (right - width - 3, bottom - height - 3))
        return
    x, y, reach = mark.x * picture.width, mark.y * picture.height, _radius(style) + 3
    near = 0.7 * reach
    yield from (
        (x + near, y - near - height),
        (x - near - width, y - near - height),
        (x + near, y + near),
        (x - near - width, y + near),
    )
    yield from ((x - width / 2, y - reach - height), (x - width / 2, y + reach))


def _shape_box(picture: Image.Image, mark: Mark, style: Style) -> Box:
    """What a mark covers; of a box its middle alone, since names may lie on a box's edge and inside it."""
    x, y, reach = mark.x * picture.width, mark.y * picture.height, _radius(style)
    return x - reach, y - reach, x + reach, y + reach


def _pixels(box: Box, picture: Image.Image) -> Box:
    left, top, right, bottom = box
    return left * picture.width, top * picture.height, right * picture.width, bottom * picture.height


def _radius(style: Style) -> float:
    return 0.62 * style.text_px


def _within(box: Box, picture: Image.Image) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= picture.width and box[3] <= picture.height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _paste(picture: Image.Image, mask: Image.Image, left: int, top: int, color: Rgb) -> None:
    picture.paste(color, (left, top, left + mask.width, top + mask.height), mask)


@lru_cache(maxsize=64)
def _ring(size_px: int, line_px: int) -> Image.Image:
    mask = Image.new("L", (size_px * SMOOTHING, size_px * SMOOTHING))
    ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), outline=255, width=line_px * SMOOTHING)
    return mask.reduce(SMOOTHING)


@lru_cache(maxsize=64)
def _plate(width_px: int, height_px: int) -> Image.Image:
    mask = Image.new("L", (width_px * SMOOTHING, height_px * SMOOTHING))
    radius = SMOOTHING * height_px / 4
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius, fill=255)
    return mask.reduce(SMOOTHING)
