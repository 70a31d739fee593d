"""Pictures with answers on them: sizes, where marks lie, and that no answer whatever breaks a picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from drivekd.images import RGBImage, load_image
from drivekd.runtime.answers.answer import Answer, FinishReason
from drivekd.runtime.answers.schemas import default_schemas, valid_answer
from drivekd.runtime.pictures.marks import Mark, marks_of
from drivekd.runtime.pictures.overlay import AROUND_THE_CAR, draw_answers, write_overlay
from drivekd.runtime.pictures.panel import Line, answer_lines, state_of
from drivekd.runtime.pictures.style import COLORS, WARNING, font, shortened, style_for, wrapped
from drivekd.tags import without_tags

CAMERAS = ("CAM_FRONT", "CAM_BACK")


def answer(capability: str = "perception", text: str = "", structured: dict[str, Any] | None = None, **more: Any) -> Answer:
    return Answer(capability, text, structured=structured, backend="ort-cpu", timings_ms={"total": 812.3}, **more)


def seen(camera: str | None, x: int | None, y: int | None) -> dict[str, Any]:
    return {"camera": camera, "position": None if x is None else [x, y], "category": "car", "status": "moving"}


def perception(*objects: dict[str, Any]) -> Answer:
    found = {"objects": list(objects), "complete": True}
    assert valid_answer(default_schemas(CAMERAS)["perception"], found) is None, "what is drawn here is what a bundle answers"
    return answer(structured=found)


def grey(width: int, height: int, shade: int = 90) -> RGBImage:
    return np.full((height, width, 3), shade, np.uint8)


def drawn(images: Mapping[str, RGBImage], *answers: Answer) -> RGBImage:
    return np.asarray(draw_answers(images, {one.capability: one for one in answers}, caption="frame 1"))


def changed_box(before: RGBImage, after: RGBImage) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels that differ."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (960, 540), (448, 448), (1600, 900), (512, 300)])
def test_one_camera_keeps_its_size_and_its_pixels(width: int, height: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = drawn({"CAM_FRONT": image}, answer(text="a car"), answer("planning", "stop"))
    assert picture.shape[1] == width
    np.testing.assert_array_equal(picture[:height], image, err_msg="without marks nothing lies on the road")


@pytest.mark.parametrize(("width", "expected"), [(56, 448), (3840, 1920)])
def test_tiny_and_huge_pictures_are_scaled(width: int, expected: int) -> None:
    assert drawn({"CAM_FRONT": grey(width, width // 2)}, answer(text="a car")).shape[1] == expected


@pytest.mark.parametrize("width", [448, 1280])
def test_frames_of_one_size_give_pictures_of_one_size(width: int) -> None:
    """Else they make no video."""
    texts = ["", "yes", "word " * 500, "x" * 3000, "\n\n", "Zürich, 東京"]
    many = perception(*(seen("CAM_FRONT", 10 * i, 10 * i) for i in range(8)))
    answers = [*(answer(text=text) for text in texts), many, perception(), answer(text="cut", finish_reason="deadline")]
    sizes = {drawn({"CAM_FRONT": grey(width, 300)}, one, answer("planning", "stop")).shape for one in answers}
    assert len(sizes) == 1
    assert next(iter(sizes))[0] % 2 == 0, "video encoders want even heights"


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_several_cameras_share_one_picture(count: int) -> None:
    images = {f"camera_{i}": grey(160, 90, 20 * i) for i in range(count)}
    picture = drawn(images, answer(text="a car"))
    shades = [int(image[0, 0, 0]) for image in images.values()]
    assert all((picture == shade).all(axis=2).sum() > 1000 for shade in shades), "every camera is seen"


def test_cameras_around_the_car_lie_where_they_look() -> None:
    images = {name: grey(160, 90, 10 + 40 * i) for i, name in enumerate(sorted(AROUND_THE_CAR))}
    picture = drawn(images, answer(text="a car"))
    cell = picture.shape[1] // 3
    for index, name in enumerate(AROUND_THE_CAR):
        row, column = divmod(index, 3)
        middle = picture[round(cell * 9 / 16 * (row + 0.5)), cell * column + cell // 2]
        assert int(middle[0]) == int(images[name][0, 0, 0]), name


# --- marks ----------------------------------------------------------------------------------------------------------


@given(x=st.integers(0, 799), y=st.integers(0, 449))
@settings(max_examples=40, deadline=None)
def test_a_mark_lies_where_the_answer_says(x: int, y: int) -> None:
    image = grey(800, 450)
    picture = drawn({"CAM_FRONT": image}, perception(seen("CAM_FRONT", x, y)))[:450]
    left, top, right, bottom = changed_box(image, picture)
    reach = 3 * style_for(800).text_px  # ring and name plate
    assert left <= x <= right and top <= y <= bottom
    assert x - reach <= left and right <= x + reach and y - reach <= top and bottom <= y + reach


def test_a_mark_is_scaled_with_its_picture_and_stays_in_its_camera() -> None:
    images = {"CAM_FRONT": grey(800, 400), "CAM_BACK": grey(800, 400)}
    plain = drawn(images, perception())
    found = perception(seen("CAM_BACK", 200, 300))
    left, top, right, bottom = changed_box(plain[:470], drawn(images, found)[:470])
    cell = (1920 - 4) // 2
    assert left <= cell + 4 + 200 * cell / 800 <= right, "the second picture, a quarter from its left"
    assert top <= 300 * cell / 800 <= bottom
    assert right - left < 100


def test_names_of_near_marks_do_not_hide_each_other() -> None:
    image = grey(800, 450)
    one = drawn({"CAM_FRONT": image}, perception(seen("CAM_FRONT", 400, 200)))[:450]
    two = drawn({"CAM_FRONT": image}, perception(*(seen("CAM_FRONT", 400 + i, 200) for i in range(2))))[:450]
    color = np.asarray(COLORS["perception"], np.uint8)
    assert (two == color).all(axis=2).sum() > 1.6 * (one == color).all(axis=2).sum(), "two plates, not one above the other"


def test_a_name_does_not_hide_another_mark() -> None:
    """A name's best place is up to the right of its mark: there the other mark is."""
    other = seen("CAM_FRONT", 416, 184)
    alone = drawn({"CAM_FRONT": grey(800, 450)}, perception(other))[:450]
    both = drawn({"CAM_FRONT": grey(800, 450)}, perception(other, seen("CAM_FRONT", 400, 200)))[:450]
    ring = slice(178, 191), slice(410, 423)
    np.testing.assert_array_equal(both[ring], alone[ring])


def test_a_box_is_drawn_as_a_box() -> None:
    image = grey(800, 450)
    boxed = answer(structured={"objects": [{"camera": "CAM_FRONT", "box": [100, 200, 300, 260]}], "complete": True})
    picture = drawn({"CAM_FRONT": image}, boxed)[:450]
    for x, y in ((100, 230), (300, 230), (200, 260)):
        assert (picture[y - 2 : y + 3, x - 2 : x + 3] == COLORS["perception"]).all(axis=2).any(), (x, y)
    assert (picture[230, 200] == 90).all(), "what is in it stays free"


def test_what_two_capabilities_name_is_marked_once() -> None:
    image, text = grey(800, 450), "<c1,CAM_FRONT,0.5,0.5> is near"
    one = drawn({"CAM_FRONT": image}, answer(text=text), answer("planning", "stop"))[:450]
    both = drawn({"CAM_FRONT": image}, answer(text=text), answer("planning", text))[:450]
    np.testing.assert_array_equal(one, both)


SIZES = {"CAM_FRONT": (1000, 500), "CAM_BACK": (800, 400)}


@pytest.mark.parametrize(
    "wrong",
    [
        seen(None, 10, 10),
        seen("CAM_BACK", None, None),
        seen("CAM_BACK", 801, 10),
        seen("CAM_TOP", 10, 10),
        {"camera": "CAM_BACK", "box": [30, 10, 20, 40]},
        {"camera": "CAM_BACK", "position": [10]},
        {"camera": "CAM_BACK", "position": [None, 10]},
        {"camera": ["CAM_BACK"], "position": [10, 10]},
        {"position": [10, 10]},
        None,
        "car",
    ],
    ids=str,
)
def test_a_place_that_was_not_said_is_not_marked(wrong: Any) -> None:
    found = answer(structured={"objects": [wrong, seen("CAM_BACK", 200, 100)], "complete": False})
    assert marks_of(found, SIZES) == [Mark("CAM_BACK", 0.25, 0.25, "2")], "numbers are those of the answer's lines"


@pytest.mark.parametrize("objects", [None, 3, [], {}])
def test_an_answer_without_objects_has_no_marks(objects: Any) -> None:
    assert marks_of(answer(structured={"objects": objects, "complete": False}), SIZES) == []
    assert marks_of(answer("planning", structured={"actions": ["stop"], "complete": True}), SIZES) == []


def test_where_cameras_have_no_names_all_is_in_the_only_picture() -> None:
    """A student that learnt CAM_FRONT writes it, whatever its bundle calls the one picture that it was given."""
    for found in ({"position": [500, 250]}, seen(None, 500, 250), seen("CAM_FRONT", 500, 250)):
        one = answer(structured={"objects": [found], "complete": True})
        assert marks_of(one, {"camera_0": (1000, 500)}) == [Mark("camera_0", 0.5, 0.5, "1")]
        assert marks_of(one, {"camera_0": (1000, 500), "camera_1": (1000, 500)}) == []
    tag = answer(text="<c1,CAM_FRONT,0.5,0.5>")
    assert marks_of(tag, {"camera_0": (1000, 500)}) == [Mark("camera_0", 0.5, 0.5, "c1")]
    assert marks_of(tag, {"CAM_BACK": (1000, 500)}) == [], "a camera that the model was not shown"


def test_tags_of_a_free_text_are_marks_in_either_style() -> None:
    normalised = (
        "A car <c1,CAM_FRONT,0.5,0.25> and a bus <c2,CAM_BACK,0.1,0.9>. IDs: <c1,CAM_FRONT,0.5,0.25>, <c3,CAM_LEFT,0.1,0.1>"
    )
    marks = [Mark("CAM_FRONT", 0.5, 0.25, "c1"), Mark("CAM_BACK", 0.1, 0.9, "c2")]
    assert marks_of(answer(text=normalised), SIZES) == marks
    pixels = "A car <c1,CAM_FRONT,800.0,225.0> and a bus <c2,CAM_BACK,160,810>, <c4,CAM_FRONT,4.32,"
    assert marks_of(answer(text=pixels), SIZES, "pixel") == marks, "pixels of 1600 x 900, whatever the picture's own size"
    assert marks_of(answer(text="<c1,CAM_FRONT,0.5,4.32>"), SIZES) == [], "a wrong number is no pixel"
    assert without_tags(normalised).startswith("A car c1 and a bus c2. IDs: c1, ")


def test_all_answers_of_a_frame_tell_how_their_model_writes_tags() -> None:
    """One wrong number in one answer makes no pixels of it where another answer is normalised; either style alone is drawn."""
    image, right = grey(800, 450), "<c1,CAM_FRONT,0.5,0.5>"
    expected = drawn({"CAM_FRONT": image}, answer("planning", right))[:450]
    wrong = answer("reasoning", "<c2,CAM_FRONT,4.32,1.85>")
    np.testing.assert_array_equal(drawn({"CAM_FRONT": image}, wrong, answer("planning", right))[:450], expected)
    pixels = answer("planning", "<c1,CAM_FRONT,800.0,450.0>")
    np.testing.assert_array_equal(drawn({"CAM_FRONT": image}, pixels)[:450], expected)


def test_the_bundles_own_style_is_not_guessed() -> None:
    """One wrong tag of a model that writes 0..1, alone in its frame, looks like pixels."""
    image = grey(960, 540)
    wrong = {"planning": answer("planning", "<c1,CAM_FRONT,4.32,5.0>")}
    marked = {"planning": answer("planning", "<c1,CAM_FRONT,800.0,450.0>")}
    plain = np.asarray(draw_answers({"CAM_FRONT": image}, wrong, coordinates="normalized"))[:540]
    np.testing.assert_array_equal(plain, image)
    assert (np.asarray(draw_answers({"CAM_FRONT": image}, wrong))[:540] != image).any(), "guessed, it is a mark"
    for coordinates in ("pixel", "none", ""):
        drawn_marks = np.asarray(draw_answers({"CAM_FRONT": image}, marked, coordinates=coordinates))[:540]
        assert (drawn_marks != image).any()


# --- lines ----------------------------------------------------------------------------------------------------------


def test_what_each_capability_says_in_lines() -> None:
    assert answer_lines(answer(text="Stop. <c1,CAM_FRONT,0.5,0.5>\n is near ")) == [Line("Stop. c1 is near")]
    assert answer_lines(answer(text=" ")) == []
    assert answer_lines(perception(seen("CAM_FRONT", 1, 1), seen(None, None, None))) == [
        Line("car: moving", bullet="1", aside="CAM_FRONT"),
        Line("car: moving", bullet="2", aside="?"),
    ]
    assert answer_lines(perception(seen("CAM_FRONT", 1, 1)), say_cameras=False) == [Line("car: moving", bullet="1")]
    planned = {"actions": ["slow_down", "keep_lane"], "reason": "A van is near", "probability": 0.8, "complete": True}
    assert answer_lines(answer("planning", structured=planned)) == [
        Line("slow down, keep lane", strong=True),
        Line("A van is near"),
        Line("probability 0.80"),
    ]
    closed = {"actions": None, "reason": None, "probability": None, "complete": False}
    assert [line.aside for line in answer_lines(answer("planning", structured=closed))] == [
        "actions: not said",
        "reason: not said",
        "probability: not said",
    ]


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({}, ""),
        ({"finish_reason": "deadline", "valid": False, "complete": False}, "deadline"),
        ({"finish_reason": "length", "valid": False}, "cut"),
        ({"finish_reason": "cancelled"}, "cancelled"),
        ({"complete": False}, "incomplete"),
        ({"structured": {"objects": None, "complete": True}, "valid": False}, "says nothing"),
        ({"structured": {"objects": [], "complete": True}}, ""),
        ({"abstained": True, "finish_reason": "deadline"}, "abstained"),
    ],
)
def test_an_answer_that_is_not_whole_is_marked_as_such(more: dict[str, Any], state: str) -> None:
    found = answer(text="stop", **more)
    assert state_of(found) == state
    panel = drawn({"CAM_FRONT": grey(448, 100)}, found)[100:]
    assert (panel == WARNING).all(axis=2).any() == bool(state)


WORDS = st.text(st.characters(codec="utf-8"), max_size=60)


@given(WORDS, st.integers(8, 30), st.integers(40, 500))
@example("word " + "x" * 70, 20, 100)
@settings(max_examples=100, deadline=None)
def test_lines_fit_and_lose_nothing(text: str, size_px: int, width_px: int) -> None:
    lines = list(wrapped(text, size_px, width_px))
    assert "".join("".join(lines).split()) == "".join(text.split())
    letter = max((font(size_px).getlength(one) for one in text), default=0)
    assert all(font(size_px).getlength(line) <= max(width_px, 2 * letter) for line in lines), (
        "but for a letter that alone is wider"
    )
    short = shortened(text, size_px, width_px)
    assert short == text or (short.endswith("...") and text.startswith(short[:-3]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(allow_nan=False) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.sampled_from(["objects", "camera", "position"]), inner)
    ),
    max_leaves=8,
)


@given(VALUES, WORDS, st.sampled_from(["stop", "length", "deadline", "cancelled"]), st.sampled_from([448, 960]))
@settings(max_examples=30, deadline=None)
def test_no_answer_breaks_a_picture(value: Any, text: str, reason: FinishReason, width: int) -> None:
    """A bundle's own schema may hold anything."""
    odd = answer(structured={"objects": value, "complete": True}, finish_reason=reason)
    drawn({"CAM_FRONT": grey(width, 60)}, odd, answer("reasoning", text), answer("question", structured={text: value}))


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_picture_is_written_whole(tmp_path: Path) -> None:
    picture = draw_answers({"CAM_FRONT": grey(640, 360)}, {"planning": answer("planning", "stop")})
    write_overlay(tmp_path / "000001-overlay.jpg", picture)
    assert [path.name for path in tmp_path.iterdir()] == ["000001-overlay.jpg"]
    assert load_image(tmp_path / "000001-overlay.jpg").shape[:2] == (picture.height, picture.width)
    assert Image.open(tmp_path / "000001-overlay.jpg").format == "JPEG"


def test_colors_differ() -> None:
    for one, other in itertools.combinations([*COLORS.values(), WARNING], 2):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 60


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="RGBA"):
        write_overlay(tmp_path / "000001-overlay.jpg", Image.new("RGBA", (8, 8)))  # JPEG has no alpha
    assert list(tmp_path.iterdir()) == []
