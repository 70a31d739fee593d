"""Pictures with the answers drawn on them: the cameras above, marked; below them what each capability says.

The road stays free: nothing but marks and camera names lies on it. Frames of one size give pictures of one size, so that they
make a video. Pillow's own font, so that it looks the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

from PIL import Image, ImageDraw

from drivekd.files import whole_file
from drivekd.images import RGBImage
from drivekd.runtime.answers.answer import Answer
from drivekd.tags import CoordinateStyle, coordinate_style

from .marks import Mark, marks_of
from .panel import draw_panel
from .shapes import draw_marks, draw_plate, plate_size
from .style import BACKGROUND, DIM, Rgb, Style, color_of, font, shortened, style_for

MIN_WIDTH_PX, MAX_WIDTH_PX = 448, 1920
COLUMNS_FROM_PX = 900  # narrower pictures have their texts below each other
COLUMN_LINES, STACKED_LINES = 8, 5  # of each capability's text
GAP_PX = 4  # between cameras
ADVISORY = "advisory output"  # never the sole input to actuation
JPEG_QUALITY = 92

# Where a person looks for a camera: the car's front above, its back below. Other names come in the order given.
AROUND_THE_CAR = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")


def draw_answers(
    images: Mapping[str, RGBImage], answers: Mapping[str, Answer], *, caption: str = "", coordinates: str = ""
) -> Image.Image:
    """One frame with its answers.

    images: uint8 RGB [H, W, 3] by camera, at least one. caption: said at the bottom. coordinates: how the model writes tags, as
    its bundle's manifest says. One camera keeps its size when its width is 448 to 1920 px; several share 1920 px.
    """
    names = _arranged(images)
    width = _width(images)
    style = style_for(width)
    cell_px = width if len(names) == 1 else (width - GAP_PX * (_columns(len(names)) - 1)) // _columns(len(names))
    several = len(names) > 1
    marks = _marks(images, answers, _style(answers, coordinates))
    cells = []
    for name in names:
        own = [(mark, color) for mark, color in marks.items() if mark.camera == name]
        cells.append(_cell(images[name], cell_px, own, style, name=name if several else ""))
    panels = _panels(answers, width, style, say_cameras=several)
    parts = [_mosaic(cells, width), panels, _footer(caption, width, style)]
    return _below_each_other(parts)


def write_overlay(path: Path, picture: Image.Image) -> None:
    """Write a JPEG, whole or not at all."""
    with whole_file(path) as temporary:
        picture.save(temporary, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _arranged(images: Mapping[str, RGBImage]) -> list[str]:
    known = [name for name in AROUND_THE_CAR if name in images]
    return known if len(known) == len(images) else list(images)


def _columns(num_cameras: int) -> int:
    return min(num_cameras, 2 if num_cameras == 4 else 3)


def _width(images: Mapping[str, RGBImage]) -> int:
    if len(images) > 1:
        return MAX_WIDTH_PX
    (image,) = images.values()
    return min(max(int(image.shape[1]), MIN_WIDTH_PX), MAX_WIDTH_PX)


def _style(answers: Mapping[str, Answer], coordinates: str) -> CoordinateStyle:
    """Where nothing says how the model learnt to write tags, all free texts of the frame together do: one model wrote them."""
    if coordinates in get_args(CoordinateStyle):
        return cast(CoordinateStyle, coordinates)
    return coordinate_style(answer.text for answer in answers.values() if answer.structured is None)


def _marks(images: Mapping[str, RGBImage], answers: Mapping[str, Answer], style: CoordinateStyle) -> dict[Mark, Rgb]:
    """Every mark once, in the colour of the capability that named it first."""
    sizes_px = {camera: (image.shape[1], image.shape[0]) for camera, image in images.items()}
    marks: dict[Mark, Rgb] = {}
    for capability, answer in answers.items():
        for mark in marks_of(answer, sizes_px, style):
            marks.setdefault(mark, color_of(capability))
    return marks


def _cell(image: RGBImage, width_px: int, marks: Sequence[tuple[Mark, Rgb]], style: Style, *, name: str) -> Image.Image:
    """One camera's picture, scaled, with its marks. name: written into it, "" = none."""
    height, width = image.shape[:2]
    cell = Image.fromarray(image)
    if width != width_px:
        cell = cell.resize((width_px, max(1, round(height * width_px / width))), Image.Resampling.LANCZOS)
    draw_marks(cell, marks, style)
    if name:
        plate_width, plate_height = plate_size(name, style.small_px)
        draw_plate(cell, (6, 6, 6 + plate_width, 6 + plate_height), name, DIM, style.small_px)
    return cell


def _mosaic(cells: Sequence[Image.Image], width_px: int) -> Image.Image:
    """Cells in rows, each row as high as its highest cell."""
    columns = _columns(len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    mosaic = Image.new("RGB", (width_px, sum(heights) + GAP_PX * (len(rows) - 1)), BACKGROUND)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            mosaic.paste(cell, (column * (cell.width + GAP_PX), top))
        top += height + GAP_PX
    return mosaic


def _panels(answers: Mapping[str, Answer], width_px: int, style: Style, *, say_cameras: bool) -> Image.Image:
    """Texts beside each other in a wide picture, below each other in a narrow one."""
    margin, beside = style.margin_px, width_px >= COLUMNS_FROM_PX
    columns = len(answers) if beside else 1
    inner_px = (width_px - margin * (columns + 1)) // columns
    lines = COLUMN_LINES if beside else STACKED_LINES
    panels = [draw_panel(style, inner_px, lines, name, answer, say_cameras=say_cameras) for name, answer in answers.items()]
    rows = 1 if beside else len(panels)
    block = Image.new("RGB", (width_px, margin + rows * (panels[0].height + margin // 2)), BACKGROUND)
    for index, panel in enumerate(panels):
        column, row = (index, 0) if beside else (0, index)
        block.paste(panel, (margin + column * (inner_px + margin), margin + row * (panel.height + margin // 2)))
    return block


def _footer(caption: str, width_px: int, style: Style) -> Image.Image:
    footer = Image.new("RGB", (width_px, round(1.5 * style.line_px)), BACKGROUND)
    draw, letters, middle = ImageDraw.Draw(footer), font(style.small_px), style.line_px / 2
    draw.text((width_px - style.margin_px, middle), ADVISORY, font=letters, fill=DIM, anchor="rm")
    room = width_px - 4 * style.margin_px - letters.getlength(ADVISORY)
    draw.text(
        (style.margin_px, middle), shortened(" ".join(caption.split()), style.small_px, room), font=letters, fill=DIM, anchor="lm"
    )
    return footer


def _below_each_other(parts: Sequence[Image.Image]) -> Image.Image:
    height = sum(part.height for part in parts)
    picture = Image.new("RGB", (parts[0].width, height + height % 2), BACKGROUND)  # video encoders want even heights
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    return picture
