"""Object tags: read, counted when malformed, normalised by the style of the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.sample import CAMERAS
from drivekd.tags import Tag, cameras_named, coordinate_style, find_tags, malformed_tags, normalize_tags, without_tags


def test_normalised_and_pixel_tags_of_one_point_are_equal() -> None:
    (normalized,) = find_tags("<c1,CAM_BACK,0.5000,0.2500>", "normalized")
    (pixel,) = find_tags("<c1,CAM_BACK,800.0,225.0>", "pixel")
    assert normalized == pixel == Tag("c1", "CAM_BACK", 0.5, 0.25)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<c1,CAM_FRONT,4.32,0.85>", ["<c1,CAM_FRONT,4.32,0.85>"]),
        ("<c1,CAM_FRONT,-0.1,0.85>", ["<c1,CAM_FRONT,-0.1,0.85>"]),
        ("<c1,CAM_FRONT,0.1,0.2><c4,CAM_FRONT,0.8441,0.83", ["<c4,CAM_FRONT,0.8441,0.83"]),
        ("<c1,CAM_FRONT,0.1,0.2> and <c2,CAM_ROOF,0.1,0.2>", ["<c2,CAM_ROOF,0.1,0.2>"]),
        ("<c1,CAM_FRONT,0.1>", ["<c1,CAM_FRONT,0.1>"]),
        ("the end is cut <c", ["<c"]),
        ("the end is cut <", ["<"]),
        ("a <car> and 3 < 4 and < c1, CAM_FRONT, 0.1, 0.2 >", []),
    ],
)
def test_malformed_tags(text: str, expected: list[str]) -> None:
    assert malformed_tags(text) == expected


def test_the_style_is_the_files_and_a_wrong_tag_is_no_pixel() -> None:
    assert coordinate_style(["<c1,CAM_FRONT,4.32,0.85>", "<c1,CAM_FRONT,0.2,0.3>"]) == "normalized"
    assert coordinate_style(["<c1,CAM_FRONT,432.0,85.0>", "<c1,CAM_FRONT,0.5,0.5>", "<c1,CAM_BACK,3,4>"]) == "pixel"
    assert coordinate_style(["<c1,CAM_FRONT,4.32,1.85>", "<c1,CAM_FRONT,0.2,0.3>"]) == "normalized"
    assert coordinate_style(["no tags"]) == "normalized"
    assert find_tags("<c1,CAM_FRONT,0.5,0.5>", "pixel")[0].x == pytest.approx(0.5 / 1600)


def test_normalising_keeps_malformed_tags_verbatim() -> None:
    text = "See <c1,CAM_FRONT,800.0,450.0>, <c2,CAM_FRONT,1700.0,450.0> and <c3,CAM_FRONT,8"
    expected = "See <c1,CAM_FRONT,0.5000,0.5000>, <c2,CAM_FRONT,1700.0,450.0> and <c3,CAM_FRONT,8"
    assert normalize_tags(text, "pixel") == expected
    assert normalize_tags(expected, "normalized") == expected


def test_every_reader_knows_the_same_tags() -> None:
    """The car's cameras have any name; only a record's are nuScenes'."""
    text = "<c1,CAM_FRONT,0.5,0.5> < c2 , front_left , 0.1,0.2>"
    assert find_tags(text) == [Tag("c1", "CAM_FRONT", 0.5, 0.5)]
    assert find_tags(text, cameras=None) == [Tag("c1", "CAM_FRONT", 0.5, 0.5), Tag("c2", "front_left", 0.1, 0.2)]
    assert malformed_tags(text) == ["< c2 , front_left , 0.1,0.2>"]
    assert normalize_tags(text, "pixel").endswith(" < c2 , front_left , 0.1,0.2>")
    assert without_tags(text) == "c1 c2"


def test_cameras_are_named_in_the_projects_order_even_by_cut_tags() -> None:
    assert cameras_named("<c1,CAM_BACK,0.1,0.2> <c2,CAM_FRONT,0.1") == ("CAM_FRONT", "CAM_BACK")
    assert cameras_named("what does CAM_BACK show?") == ()


@given(st.sampled_from(CAMERAS), st.floats(0, 1600), st.floats(0, 900))
def test_normalising_moves_no_point(camera: str, x: float, y: float) -> None:
    text = f"<c7,{camera},{x:.1f},{y:.1f}>"
    (before,) = find_tags(text, "pixel")
    (after,) = find_tags(normalize_tags(text, "pixel"), "normalized")
    assert after.camera == before.camera
    # Four decimals: half of 1e-4 of the width, .08 px.
    assert (after.x, after.y) == pytest.approx((before.x, before.y), abs=0.51e-4)
