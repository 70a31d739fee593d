"""The contact sheet: one page on which a person sees what the world looks like and what is asked about it.

Above, one frame: the front camera with its boxes, its questions and answers, the other five cameras.
Below, front views by daylight, weather and action. Pillow's own font, so that it looks the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from drivekd.sample import CAMERAS, Capability

from .oracle import Action, plan
from .picture.labels import Label, describe_actor
from .picture.painting import render_frame
from .questions import ACTIONS, OPTIONS_INTRO, Question, questions_of
from .scene.scene import DAYLIGHTS, WEATHERS, Scene
from .situation import Situation
from .staging import make_scene, situation_of

Rgb = tuple[int, int, int]
Size = tuple[int, int]
Box = tuple[float, float, float, float]

_WIDTH, _MARGIN, _GAP = 1920, 44, 16
_HERO_PX: Size = (848, 477)
_STRIP_PX: Size = (353, 199)
_TILE_PX: Size = (446, 251)
_NUM_TILES = 12
_CORNER_PX = 10
_SUPERSAMPLE = 3

_BACKGROUND: Rgb = (17, 19, 24)
_BRIGHT: Rgb = (238, 240, 244)
_DIM: Rgb = (150, 156, 168)
_CAPABILITY_COLORS: dict[Capability, Rgb] = {
    "perception": (98, 208, 196),
    "reasoning": (244, 190, 92),
    "planning": (150, 168, 255),
}
_ACTION_COLORS: dict[Action, Rgb] = {
    "keep": (110, 214, 136),
    "slow": (244, 190, 92),
    "brake": (255, 112, 100),
    "left": (150, 168, 255),
    "right": (206, 150, 255),
}


def write_contact_sheet(path: Path, first_seed: int) -> None:
    """Render the sheet to the PNG `path` from the first fitting scenes at or after first_seed."""
    canvas = _Canvas(_WIDTH, 1980)
    top = _draw_title(canvas)
    top = _draw_hero(canvas, make_scene(next(_seeds_of_hero(first_seed))), top)
    top = _draw_tiles(canvas, [make_scene(seed) for seed in _tile_seeds(first_seed)], top)
    canvas.image.crop((0, 0, _WIDTH, top + _MARGIN - _GAP)).save(path, "PNG")


@dataclass
class _Canvas:
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.width_px, self.height_px), _BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, left: float, top: float, text: str, size: int, color: Rgb) -> None:
        self.draw.text((left, top), text, font=_font(size), fill=color)

    def paste_rounded(self, picture: Image.Image, left: int, top: int) -> None:
        mask = Image.new("L", (picture.width * 4, picture.height * 4))
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 4 * _CORNER_PX, fill=255)
        self.image.paste(picture, (left, top), mask.reduce(4))


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


def _draw_title(canvas: _Canvas) -> int:
    canvas.text(_MARGIN, 34, "The built-in driving world", 46, _BRIGHT)
    subtitle = "Six cameras, exact boxes, and questions that need the picture and the speed. All of it is drawn from a seed."
    canvas.text(_MARGIN, 96, subtitle, 21, _DIM)
    return 144


def _draw_hero(canvas: _Canvas, scene: Scene, top: int) -> int:
    """The front camera, the questions beside it, the other cameras below; returns the next free row."""
    pixels, labels = render_frame(scene, "CAM_FRONT", _HERO_PX, _SUPERSAMPLE)
    picture = Image.fromarray(pixels)
    questions = questions_of(scene, labels)
    _draw_boxes(picture, scene, labels)
    canvas.paste_rounded(picture, _MARGIN, top)
    _draw_questions(canvas, questions, _MARGIN + _HERO_PX[0] + 32, top)
    top += _HERO_PX[1] + _GAP
    for column, camera in enumerate(_other_cameras()):
        view, _ = render_frame(scene, camera, _STRIP_PX, _SUPERSAMPLE)
        left = _MARGIN + column * (_STRIP_PX[0] + _GAP)
        canvas.paste_rounded(Image.fromarray(view), left, top)
        canvas.text(left + 2, top + _STRIP_PX[1] + 6, camera, 16, _DIM)
    return top + _STRIP_PX[1] + 56


def _other_cameras() -> tuple[str, ...]:
    order = ("CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
    assert set(order) | {"CAM_FRONT"} == set(CAMERAS)
    return order


def _draw_boxes(picture: Image.Image, scene: Scene, labels: list[Label]) -> None:
    """Boxes, far ones first; names of the larger and of the deciding actors, above the box or, where taken, below."""
    draw = ImageDraw.Draw(picture)
    keys = (scene.lead, scene.crossing_pedestrian)
    taken: list[Box] = []
    for label in sorted(labels, key=lambda label: -scene.actors[label.actor].s_m):
        actor = scene.actors[label.actor]
        color = _ACTION_COLORS["slow"] if actor in keys else _CAPABILITY_COLORS["perception"]
        left, top, right, bottom = label.box_px
        draw.rounded_rectangle((left - 1, top - 1, right + 1, bottom + 1), 3, outline=color, width=2)
        if actor in keys or right - left > 60:
            name = describe_actor(actor)
            width = draw.textlength(name, font=_font(14)) + 10
            above, below = (
                (left - 1, top - 21, left + width, top - 2),
                (left - 1, bottom + 2, left + width, bottom + 21),
            )
            place = below if any(_overlap(above, other) for other in taken) else above
            draw.rounded_rectangle(place, 3, fill=color)
            draw.text((place[0] + 5, place[1] + 1), name, font=_font(14), fill=_BACKGROUND)
            taken.append(place)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_questions(canvas: _Canvas, questions: list[Question], left: int, top: int) -> None:
    width = _WIDTH - _MARGIN - left
    for question in questions:
        color = _CAPABILITY_COLORS[question.capability]
        text = question.text.split(OPTIONS_INTRO)[0]
        canvas.draw.rounded_rectangle((left, top + 3, left + 4, top + 40), 2, fill=color)
        canvas.text(left + 16, top, text, 17, _DIM)
        topic = f"{question.capability} / {question.topic}"
        canvas.text(left + width - _font(14).getlength(topic), top + 2, topic, 14, color)
        for line in _wrapped(question.answer, 18, width - 16):
            top += 22
            canvas.text(left + 16, top, line, 18, _BRIGHT)
        top += 29


def _wrapped(text: str, size: int, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _draw_tiles(canvas: _Canvas, scenes: list[Scene], top: int) -> int:
    """Front views, four a row, each with its conditions and its action; returns the next free row."""
    row_height = _TILE_PX[1] + 50
    for index, scene in enumerate(scenes):
        left = _MARGIN + (index % 4) * (_TILE_PX[0] + _GAP)
        row_top = top + (index // 4) * row_height
        view, _ = render_frame(scene, "CAM_FRONT", _TILE_PX, _SUPERSAMPLE)
        canvas.paste_rounded(Image.fromarray(view), left, row_top)
        action = plan(scene).action
        caption = f"{scene.daylight}, {scene.weather}, {scene.ego_speed_mps} m/s"
        canvas.text(left + 2, row_top + _TILE_PX[1] + 8, caption, 17, _DIM)
        right = left + _TILE_PX[0] - 2 - _font(17).getlength(ACTIONS[action])
        canvas.text(right, row_top + _TILE_PX[1] + 8, ACTIONS[action], 17, _ACTION_COLORS[action])
    return top + (len(scenes) + 3) // 4 * row_height


def _seeds_of_hero(first_seed: int) -> Iterator[int]:
    """Scenes with much to see: a bright day, a signal, a vehicle ahead, a pedestrian, traffic beside."""
    for seed in range(first_seed, first_seed + 100_000):
        wanted = situation_of(seed)
        bright = wanted.daylight == "day" and wanted.weather == "clear"
        busy = wanted.pedestrian and wanted.signal == "red" and wanted.lead == "far" and wanted.right == "blocked"
        if bright and busy and wanted.bend != 0:
            yield seed


def _tile_seeds(first_seed: int) -> list[int]:
    """Seeds that take turns in daylight, weather and action."""
    actions = tuple(_ACTION_COLORS)
    seeds = []
    for index in range(_NUM_TILES):
        look = (DAYLIGHTS[index % 3], WEATHERS[(index // 3 + index) % 3], actions[(index * 2) % 5])
        seeds.append(next(seed for seed in range(first_seed, first_seed + 100_000) if _has_look(situation_of(seed), look)))
        first_seed = seeds[-1] + 1
    return seeds


def _has_look(situation: Situation, look: tuple[str, str, str]) -> bool:
    return (situation.daylight, situation.weather, situation.action) == look
