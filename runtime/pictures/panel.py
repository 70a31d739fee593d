"""What one capability says, as a panel of text: a title with its state, then a fixed number of lines, read at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageDraw

from drivekd.runtime.answers.answer import Answer, says_nothing
from drivekd.tags import without_tags

from .shapes import draw_plate, plate_size
from .style import BACKGROUND, BRIGHT, DIM, WARNING, Rgb, Style, color_of, font, shortened, wrapped

PLACES = ("camera", "position", "box")  # shown by the mark; the camera is said behind the words
UNKNOWN = "?"  # a null inside an object


@dataclass(frozen=True)
class Line:
    """bullet: a mark's name. strong: what decides, such as an action. aside: said more quietly behind the text."""

    text: str
    bullet: str = ""
    aside: str = ""
    strong: bool = False


def answer_lines(answer: Answer, *, say_cameras: bool = True) -> list[Line]:
    """A free text is one line, with tags as their names; an object is a line for each of its parts.

    say_cameras: behind an object's words; needless where there is one camera.
    """
    if answer.structured is None:
        text = " ".join(without_tags(answer.text).split())
        return [Line(text)] if text else []
    parts = [(name, value) for name, value in answer.structured.items() if name != "complete"]
    lines = [line for name, value in parts for line in _part_lines(name, value)]
    return lines if say_cameras else [replace(line, aside="") if line.bullet else line for line in lines]


def state_of(answer: Answer) -> str:
    """What must be known before the answer is believed: "" when it came to its own end and is not abstained from."""
    if answer.abstained:
        return "abstained"
    if answer.finish_reason != "stop":
        return {"length": "cut"}.get(answer.finish_reason, answer.finish_reason)
    if answer.structured is not None and says_nothing(answer.structured):
        return "says nothing"
    return "" if answer.valid and answer.complete else "incomplete"


def _part_lines(name: str, value: Any) -> Iterator[Line]:
    words = name.replace("_", " ")
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from (_object_line(str(number), item) for number, item in enumerate(value, start=1))
    elif isinstance(value, list):
        yield Line(", ".join(map(_word, value)) or f"no {words}", strong=True)
    elif isinstance(value, str):
        yield Line(value)
    elif value is None:
        yield Line("", aside=f"{words}: not said")
    else:
        yield Line(f"{words} {_word(value)}")


def _object_line(number: str, item: Any) -> Line:
    """{"category": "car", "status": "braking", "camera": "CAM_FRONT", ...} -> "car: braking", aside CAM_FRONT."""
    if not isinstance(item, Mapping):
        return Line(_word(item), bullet=number)
    first, *others = [_word(value) for name, value in item.items() if name not in PLACES] or [UNKNOWN]
    return Line(first + (f": {', '.join(others)}" if others else ""), bullet=number, aside=_word(item.get("camera", "")))


def _word(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, str) and value.islower():
        value = value.replace("_", " ")  # an enum's word; CAM_FRONT stays
    return " ".join(str(value).split())


def panel_height(style: Style, num_lines: int) -> int:
    """Of every panel with so many lines, whatever it says."""
    return round(1.5 * style.line_px) + num_lines * style.line_px


def draw_panel(
    style: Style, width_px: int, num_lines: int, capability: str, answer: Answer, *, say_cameras: bool = True
) -> Image.Image:
    """The panel; a text that is longer ends in "...". say_cameras: as answer_lines takes it."""
    panel = Image.new("RGB", (width_px, panel_height(style, num_lines)), BACKGROUND)
    _draw_title(panel, style, capability, answer)
    writer = _Writer(panel, style, num_lines, color_of(capability))
    lines = answer_lines(answer, say_cameras=say_cameras) or [Line("", aside="no answer")]
    for index, line in enumerate(lines):
        if writer.room == 1 and index < len(lines) - 1:
            writer.write(Line("", aside=f"and {len(lines) - index} more"))
            break
        writer.write(line)
    return panel


def _draw_title(panel: Image.Image, style: Style, capability: str, answer: Answer) -> None:
    """Its name in its colour; behind it a warning when there is one, and at the right what it took."""
    draw, middle = ImageDraw.Draw(panel), 0.6 * style.line_px
    color = color_of(capability)
    draw.rounded_rectangle((0, 0, panel.width - 1, max(2, style.text_px // 8)), 1, fill=color)
    draw.text((0, middle + 3), capability, font=font(style.text_px), fill=color, anchor="lm")
    left = font(style.text_px).getlength(capability) + style.margin_px
    if state := state_of(answer):
        width, height = plate_size(state, style.small_px)
        top = middle + 3 - height / 2
        draw_plate(panel, (left, top, left + width, top + height), state, WARNING, style.small_px)
        left += width + style.margin_px
    aside = shortened(_took(answer), style.small_px, panel.width - left)
    draw.text((panel.width, middle + 3), aside, font=font(style.small_px), fill=DIM, anchor="rm")


def _took(answer: Answer) -> str:
    confidence = "" if answer.confidence is None or not answer.calibrated else f"{answer.confidence:.0%} sure  "
    total = answer.timings_ms.get("total")
    return confidence + ("" if total is None else f"{total:,.0f} ms")


class _Writer:
    """Writes lines below each other until the panel is full. room: lines that are left."""

    def __init__(self, panel: Image.Image, style: Style, num_lines: int, color: Rgb) -> None:
        self._panel = panel
        self._draw = ImageDraw.Draw(panel)
        self._style = style
        self.room = num_lines
        self._color = color
        self._top = float(round(1.5 * style.line_px))

    def write(self, line: Line) -> None:
        indent = 1.9 * self._style.text_px if line.bullet else 0.0
        pieces = list(wrapped(line.text, self._style.text_px, self._panel.width - indent)) or [""]
        for index, piece in enumerate(pieces):
            if not self.room:
                return
            if self.room == 1 and index < len(pieces) - 1:
                piece = self._cut(piece, indent)
            self._write_piece(piece, indent, line, first=index == 0, last=index == len(pieces) - 1)
            self.room -= 1
            self._top += self._style.line_px

    def _cut(self, piece: str, indent: float) -> str:
        return shortened(f"{piece} ...", self._style.text_px, self._panel.width - indent)

    def _write_piece(self, piece: str, indent: float, line: Line, *, first: bool, last: bool) -> None:
        size, middle = self._style.text_px, self._top + self._style.line_px / 2
        if first and line.bullet:
            width, height = plate_size(line.bullet, self._style.small_px)
            box = (0, middle - height / 2, width, middle + height / 2)
            draw_plate(self._panel, box, line.bullet, self._color, self._style.small_px)
        fill = self._color if line.strong else BRIGHT
        for shift in (0, 1) if line.strong else (0,):  # twice = bold; Pillow's own font has no bold face
            self._draw.text((indent + shift, middle), piece, font=font(size), fill=fill, anchor="lm")
        if last and line.aside:
            left = indent + font(size).getlength(piece) + (0.6 * size if piece else 0)
            aside = shortened(line.aside, self._style.small_px, self._panel.width - left)
            self._draw.text((left, middle), aside, font=font(self._style.small_px), fill=DIM, anchor="lm")
