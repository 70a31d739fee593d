"""Dataclasses survive JSON, and JSON of another shape is refused where it differs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.images import ImageSettings, PatchSettings
from drivekd.typed_json import TypedJsonError, dataclass_from_json, json_from_dataclass


@dataclass(frozen=True)
class Circle:
    radius: float
    name: str | None


@dataclass(frozen=True)
class Box:
    width: int
    height: int
    name: str | None


@dataclass(frozen=True)
class Picture:
    shapes: tuple[Circle | Box, ...]
    images: ImageSettings | PatchSettings
    rows: tuple[dict[str, str | int | float | bool], ...]


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(json_from_dataclass(value)))


names = st.none() | st.text(max_size=5)
circles = st.builds(Circle, st.floats(allow_nan=False, allow_infinity=False), names)
boxes = st.builds(Box, st.integers(), st.integers(), names)
images = st.builds(ImageSettings, st.integers()) | st.builds(PatchSettings, st.integers(), st.integers())
cells = st.text(max_size=3) | st.integers() | st.booleans()
rows = st.lists(st.dictionaries(st.text(max_size=3), cells, max_size=3), max_size=3).map(tuple)
pictures = st.builds(Picture, st.lists(circles | boxes, max_size=4).map(tuple), images, rows)


@given(pictures)
def test_json_gives_back_the_very_dataclass(picture: Picture) -> None:
    read = dataclass_from_json(Picture, through_json(picture), "p")
    assert read == picture
    assert [type(shape) for shape in read.shapes] == [type(shape) for shape in picture.shapes]
    assert [[type(cell) for cell in row.values()] for row in read.rows] == [
        [type(cell) for cell in row.values()] for row in picture.rows
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"radius": 1.0, "name": None, "colour": 1}, r"p\.shapes\[0\]: unknown key 'colour'; known: radius, name"),
        ({"radius": 1.0}, r"p\.shapes\[0\]: key 'name' is missing"),
        ({"width": 1, "name": None}, r"p\.shapes\[0\]: key 'height' is missing"),
        ({"width": 1, "height": 2.5, "name": None}, r"p\.shapes\[0\]\.height: expected int, found 2\.5"),
        ({"width": 1, "height": 2, "name": 3}, r"p\.shapes\[0\]\.name: expected str or NoneType, found 3"),
        ({"width": 1, "height": 2, "radius": 1.0, "name": ""}, r"p\.shapes\[0\]: unknown key 'radius'; known: width"),
        ({}, r"p\.shapes\[0\]: key 'radius' is missing"),
        (7, r"p\.shapes\[0\]: expected Circle or Box, found 7"),
        (None, r"p\.shapes\[0\]: expected Circle or Box, found None"),
    ],
)
def test_of_a_union_the_nearest_dataclass_names_what_is_wrong(value: Any, message: str) -> None:
    picture = through_json(Picture((), ImageSettings(8), ()))
    with pytest.raises(TypedJsonError, match=message):
        dataclass_from_json(Picture, {**picture, "shapes": [value]}, "p")


def test_image_settings_of_one_family_do_not_pass_for_the_other() -> None:
    square, patches = (through_json(settings) for settings in (ImageSettings(8), PatchSettings(84, 56)))
    empty = through_json(Picture((), ImageSettings(8), ()))
    for value in (square, patches):
        read = dataclass_from_json(Picture, {**empty, "images": value}, "p").images
        assert dataclasses.asdict(read).keys() == value.keys()
    with pytest.raises(TypedJsonError, match=r"p\.images: unknown key 'merge'"):
        dataclass_from_json(Picture, {**empty, "images": {**square, "merge": 2}}, "p")
    with pytest.raises(TypedJsonError, match=r"p\.images: key 'frames' is missing"):
        dataclass_from_json(Picture, {**empty, "images": {k: v for k, v in patches.items() if k != "frames"}}, "p")
