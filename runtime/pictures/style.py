"""Colours, fonts and measures that the parts of an overlay share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, cast

from PIL import ImageFont

Rgb: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom, px

BACKGROUND: Rgb = (17, 19, 24)
BRIGHT: Rgb = (238, 240, 244)
DIM: Rgb = (150, 156, 168)
WARNING: Rgb = (255, 112, 100)
COLORS: dict[str, Rgb] = {"perception": (98, 208, 196), "reasoning": (244, 190, 92), "planning": (150, 168, 255)}
OTHER_COLOR: Rgb = (206, 150, 255)  # a free question's

MIN_TEXT_PX, MAX_TEXT_PX = 13, 24
WIDTH_IN_TEXT_SIZES = 64  # 1280 px wide: 20 px letters


@dataclass(frozen=True)
class Style:
    """text_px: size of the letters; small_px: of smaller ones. line_px: from line to line. margin_px: around a block."""

    text_px: int

    @property
    def line_px(self) -> int:
        return round(1.32 * self.text_px)

    @property
    def margin_px(self) -> int:
        return round(0.9 * self.text_px)

    @property
    def small_px(self) -> int:
        return max(round(0.8 * self.text_px), MIN_TEXT_PX - 2)


def style_for(width_px: int) -> Style:
    """Letters that stay readable in a picture of this width, on the screen and when it is shrunk."""
    return Style(min(max(round(width_px / WIDTH_IN_TEXT_SIZES), MIN_TEXT_PX), MAX_TEXT_PX))


def color_of(capability: str) -> Rgb:
    """A capability's, and one for all that is none."""
    return COLORS.get(capability, OTHER_COLOR)


@lru_cache(maxsize=32)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, so that no machine lacks it; kept, since a frame asks dozens of times."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size_px))


def wrapped(text: str, size_px: int, width_px: float) -> Iterator[str]:
    """Lines no wider than width_px; a word that alone is wider is broken."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}".lstrip()
        if font(size_px).getlength(longer) <= width_px:
            line = longer
            continue
        if line:
            yield line
        *full, line = _broken(word, size_px, width_px)
        yield from full
    if line:
        yield line


def shortened(text: str, size_px: int, width_px: float) -> str:
    """The text, or as much of it as fits with "..." behind it."""
    if font(size_px).getlength(text) <= width_px:
        return text
    while text and font(size_px).getlength(f"{text}...") > width_px:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _broken(word: str, size_px: int, width_px: float) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font(size_px).getlength(pieces[-1] + letter) > width_px:
            pieces.append("")
        pieces[-1] += letter
    return pieces
