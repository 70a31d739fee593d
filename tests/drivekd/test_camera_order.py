"""Cameras by name: found in records and paths, and put into one order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.camera_order import camera_names, camera_order, follows, named_sample
from drivekd.errors import DataError
from drivekd.sample import CAMERAS, Sample


def sample(*images: str, cameras: tuple[str, ...] = ()) -> Sample:
    return Sample("train.json, record 7", "planning", "What now?", "Brake.", tuple(map(Path, images)), cameras=cameras)


def test_names_are_the_records_own_else_those_in_the_paths() -> None:
    paths = ("samples/CAM_FRONT_LEFT/1.jpg", "n015__CAM_BACK__2.jpg")
    assert camera_names(sample(*paths)) == ("CAM_FRONT_LEFT", "CAM_BACK")
    assert camera_names(sample(*paths, cameras=("CAM_FRONT", "CAM_BACK"))) == ("CAM_FRONT", "CAM_BACK")
    assert camera_names(sample("CAM_BACK/1.jpg", "2.jpg")) == ()
    assert camera_names(sample("CAM_BACK/1.jpg", "CAM_BACK/2.jpg")) == ()  # two moments of one camera
    twice = sample("1.jpg", "2.jpg", cameras=("CAM_BACK", "CAM_BACK"))
    assert camera_names(twice) == ()
    with pytest.raises(DataError, match="cannot tell the cameras of 2 images"):  # and no picture is lost
        named_sample(twice, CAMERAS)


def test_pictures_come_in_the_order_of_the_cameras_with_their_names() -> None:
    shown = named_sample(sample("CAM_BACK/b.jpg", "CAM_FRONT/f.jpg"), CAMERAS)
    assert shown.images == (Path("CAM_FRONT/f.jpg"), Path("CAM_BACK/b.jpg"))
    assert shown.cameras == ("CAM_FRONT", "CAM_BACK")
    assert named_sample(shown, CAMERAS) == shown
    assert named_sample(sample("b.jpg", "f.jpg"), ()) == sample("b.jpg", "f.jpg")


def test_pictures_without_names_are_taken_place_by_place() -> None:
    shown = named_sample(sample("b.jpg", "f.jpg"), ("CAM_FRONT", "CAM_BACK"))
    assert (shown.images, shown.cameras) == ((Path("b.jpg"), Path("f.jpg")), ("CAM_FRONT", "CAM_BACK"))
    with pytest.raises(DataError, match=r"train.json, record 7: images: cannot tell the cameras of 1 images.*\(2: CAM_FRONT"):
        named_sample(sample("b.jpg"), ("CAM_FRONT", "CAM_BACK"))


def test_a_camera_that_the_model_never_knew_is_refused() -> None:
    with pytest.raises(DataError, match="record 7: images: the camera CAM_BACK is none of CAM_FRONT, CAM_FRONT_LEFT"):
        named_sample(sample("CAM_BACK/b.jpg"), CAMERAS[:2])


def test_the_longest_order_counts_most_then_the_commonest() -> None:
    six, turned = CAMERAS, (*CAMERAS[1:], CAMERAS[0])
    assert camera_order([turned, six, six]) == six
    assert camera_order([CAMERAS[1::-1], CAMERAS[1::-1], six]) == six
    assert camera_order([turned, six]) == turned  # of equals the first
    assert camera_order([]) == camera_order([()]) == ()


def test_parts_of_frames_are_put_together() -> None:
    assert camera_order([("CAM_BACK",), ("CAM_FRONT",)]) == ("CAM_FRONT", "CAM_BACK")  # nothing says: as in CAMERAS
    assert camera_order([("a", "b", "d"), ("b", "c")]) == ("a", "b", "c", "d")
    assert camera_order([("b", "a")], known=("a", "b")) == ("a", "b")


@given(st.lists(st.permutations(CAMERAS).flatmap(lambda order: st.integers(1, 6).map(lambda n: tuple(order[:n]))), max_size=6))
def test_every_camera_is_there_once_and_one_common_order_is_kept(orders: list[tuple[str, ...]]) -> None:
    found = camera_order(orders)
    assert sorted(found) == sorted({name for order in orders for name in order})
    parts = [tuple(name for name in CAMERAS if name in order) for order in orders]
    merged = camera_order([CAMERAS, *parts])
    assert merged == CAMERAS
    assert all(follows(part, merged) for part in parts)


def test_follows() -> None:
    assert follows(("CAM_FRONT", "CAM_BACK"), CAMERAS)
    assert not follows(("CAM_BACK", "CAM_FRONT"), CAMERAS)
    assert not follows(("CAM_FRONT", "roof"), CAMERAS)
