"""Words of the command line as frames: which picture of which camera comes when, and what is refused."""

from __future__ import annotations

import logging
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_clip import write_video

from drivekd.errors import DataError, UsageError
from drivekd.images import RGBImage
from drivekd.runtime.pictures.frames import Frame, read_frames, video_pictures

CAMERAS = ("CAM_FRONT", "CAM_LEFT", "CAM_RIGHT")


def picture(shade: int, size: tuple[int, int] = (8, 6)) -> RGBImage:
    return np.full((size[1], size[0], 3), shade, np.uint8)


def shade(frame: Frame, camera: str) -> int:
    return int(frame.images[camera][0, 0, 0])


def write_folder(folder: Path, shades: Sequence[int], name: Callable[[int], str] = "img{}.png".format) -> Path:
    folder.mkdir(parents=True)
    for index, value in enumerate(shades):
        Image.fromarray(picture(value)).save(folder / name(index))
    return folder


# --- one moment -----------------------------------------------------------------------------------------------------


def test_unnamed_files_take_the_cameras_in_order_and_named_ones_their_own(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", [10, 20])
    files = [str(tmp_path / "in" / f"img{i}.png") for i in range(2)]
    (frame,) = read_frames(files, CAMERAS)
    assert {name: shade(frame, name) for name in frame.images} == {"CAM_FRONT": 10, "CAM_LEFT": 20}
    assert not frame.one_of_many
    (frame,) = read_frames([f"CAM_RIGHT={files[0]}", files[1]], CAMERAS)
    assert {name: shade(frame, name) for name in frame.images} == {"CAM_RIGHT": 10, "CAM_FRONT": 20}
    (frame,) = read_frames(files)
    assert list(frame.images) == ["camera_0", "camera_1"], "a bundle without camera names takes any number"


def test_a_path_that_names_another_camera_than_its_place_is_refused(tmp_path: Path) -> None:
    for camera in CAMERAS:
        write_folder(tmp_path / camera, [10])
    front, left = (str(tmp_path / camera / "img0.png") for camera in CAMERAS[:2])
    with pytest.raises(
        UsageError, match=r"taken for CAM_FRONT by its place, but its path names CAM_LEFT; .* CAM_LEFT=.*img0\.png"
    ):
        next(read_frames([left, front], CAMERAS))
    shutil.copy(left, tmp_path / "n015__CAM_BACK__1533.png")
    with pytest.raises(UsageError, match="its path names CAM_BACK"):
        next(read_frames([str(tmp_path / "n015__CAM_BACK__1533.png")], CAMERAS))
    for words in ([front, left], [f"CAM_FRONT={left}", f"CAM_LEFT={front}"], [f"CAM_LEFT={left}", front]):
        assert set(next(read_frames(words, CAMERAS)).images) == {"CAM_FRONT", "CAM_LEFT"}, "in order, or said"
    assert list(next(read_frames([left])).images) == ["camera_0"], "a bundle without camera names knows no places"


def test_a_file_may_have_an_equals_sign_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "t=1", [10], "gain=2.png".format)
    monkeypatch.chdir(tmp_path / "t=1")
    for word in ("gain=2.png", str(tmp_path / "t=1" / "gain=2.png")):
        (frame,) = read_frames([word], CAMERAS)
        assert list(frame.images) == ["CAM_FRONT"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no images"),
        (["a.png"] * 4, "4 images for CAM_FRONT, CAM_LEFT, CAM_RIGHT"),
        (["CAM_LEFT=a.png", "CAM_LEFT=a.png"], "name each as CAMERA=FILE"),
        (["CAM_TOP=a.png"], "camera 'CAM_TOP' is unknown to this bundle; it has: CAM_FRONT"),
        (["a.png", "clip.mp4"], "a.png is one picture, clip.mp4 many"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        next(read_frames(words, CAMERAS))


def test_every_is_at_least_one() -> None:
    with pytest.raises(UsageError, match="every is 0"):
        next(read_frames(["a.png"], CAMERAS, every=0))


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3, 12])
def test_a_folder_is_one_camera_in_the_order_of_its_numbers(tmp_path: Path, every: int) -> None:
    shades = list(range(0, 240, 20))  # img0 .. img11: as plain text img10 would come before img2
    folder = write_folder(tmp_path / "in", shades)
    (folder / "notes.txt").touch()
    (folder / "._img0.png").write_bytes(b"what a Mac leaves behind")
    frames = list(read_frames([str(folder)], CAMERAS, every=every))
    assert [shade(frame, "CAM_FRONT") for frame in frames] == shades[::every]
    assert [frame.index for frame in frames] == list(range(len(shades)))[::every]
    assert len({frame.name for frame in frames}) == len(frames)
    assert all(frame.one_of_many for frame in frames)
    assert frames[-1].source == f"img{frames[-1].index}.png"


def test_pictures_are_read_when_their_frame_is_asked_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", [10, 20, 30])
    (folder / "img2.png").write_bytes(b"\x89PNG broken")
    frames = read_frames([str(folder)], CAMERAS)
    assert [shade(frame, "CAM_FRONT") for frame in islice(frames, 2)] == [10, 20]
    with pytest.raises(DataError, match=r"img2\.png"):
        next(frames)


def test_folders_named_after_cameras_are_those_cameras_in_the_bundles_order(tmp_path: Path) -> None:
    for offset, camera in enumerate(("CAM_RIGHT", "CAM_FRONT", "CAM_LEFT")):
        write_folder(tmp_path / "samples" / camera, [offset, offset + 50])
    (tmp_path / "samples" / "LIDAR_TOP").mkdir()
    frames = list(read_frames([str(tmp_path / "samples")], CAMERAS[:2]))
    assert [list(frame.images) for frame in frames] == [["CAM_FRONT", "CAM_LEFT"]] * 2
    assert [shade(frame, "CAM_LEFT") for frame in frames] == [2, 52]
    with pytest.raises(UsageError, match="has folders CAM_FRONT, CAM_LEFT, CAM_RIGHT; this bundle's cameras are CAM_TOP"):
        next(read_frames([str(tmp_path / "samples")], ["CAM_TOP"]))


def test_an_empty_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: no images"):
        next(read_frames([str(tmp_path)], CAMERAS))
    with pytest.raises(DataError, match=r"nowhere\.png"):
        next(read_frames([str(tmp_path / "nowhere.png")], CAMERAS))


def test_cameras_that_end_apart_end_together_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    front, left = write_folder(tmp_path / "f", [1, 2, 3]), write_folder(tmp_path / "l", [4, 5])
    with caplog.at_level(logging.WARNING, logger="drivekd"):
        frames = list(read_frames([f"CAM_FRONT={front}", f"CAM_LEFT={left}"], CAMERAS))
    assert [(shade(frame, "CAM_FRONT"), shade(frame, "CAM_LEFT")) for frame in frames] == [(1, 4), (2, 5)]
    assert "CAM_LEFT ended while CAM_FRONT had more" in caplog.text


# --- videos ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_a_video_is_its_pictures_with_their_times(tmp_path: Path, every: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(7)]
    clip = write_video(tmp_path / "clip.mkv", images, rate=10)
    frames = list(read_frames([str(clip)], CAMERAS, every=every))
    assert [frame.index for frame in frames] == list(range(7))[::every]
    for frame in frames:
        np.testing.assert_array_equal(frame.images["CAM_FRONT"], images[frame.index])
        assert frame.time_s == pytest.approx(frame.index / 10, abs=1e-3)  # Matroska counts milliseconds
    assert frames[1].source == f"clip.mkv at {every / 10:.2f} s"


def test_videos_of_several_cameras_run_together(tmp_path: Path) -> None:
    clips = {}
    for offset, camera in enumerate(("CAM_LEFT", "CAM_FRONT")):
        clips[camera] = write_video(tmp_path / f"{camera}.mkv", [picture(offset + 40 * i, (32, 32)) for i in range(3)])
    frames = list(read_frames([f"{camera}={clip}" for camera, clip in clips.items()], CAMERAS))
    assert [(shade(f, "CAM_LEFT"), shade(f, "CAM_FRONT")) for f in frames] == [(0, 1), (40, 41), (80, 81)]


def test_a_rotated_video_is_turned_upright(tmp_path: Path) -> None:
    """A quarter turn clockwise, written where phones write it: in the track header's matrix."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 255  # white upper left corner; turned clockwise it is upper right
    clip = write_video(tmp_path / "clip.mp4", [image], codec="mpeg4", pix_fmt="yuv420p")
    one, last = 1 << 16, 1 << 30
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, last)
    turned = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 << 16, 0, last)
    data = clip.read_bytes()
    header = data.index(b"tkhd")
    place = data.index(upright, header)
    clip.write_bytes(data[:place] + turned + data[place + len(turned) :])
    (found,) = video_pictures(clip)
    assert found.image.shape == (64, 48, 3)
    assert found.image[10, 36].min() > 200
    assert found.image[10, 10].max() < 50


def test_a_broken_video_is_named_and_pyav_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs PyAV")
    (tmp_path / "clip.mp4").write_bytes(b"no video at all" * 100)
    for name in ("clip.mp4", "nowhere.mp4"):
        with pytest.raises(DataError, match=rf"{name}: video cannot be read"):
            next(read_frames([str(tmp_path / name)], CAMERAS))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"drivekd\[video\]"):
        next(read_frames([str(tmp_path / "clip.mp4")], CAMERAS))


# --- formats that are not taken -------------------------------------------------------------------------------------


def test_a_folder_of_other_formats_says_what_it_holds(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", [1, 2], "img{}.tif".format)
    with pytest.raises(DataError, match=r"in: no images .* it holds 2 \.tif: convert them to JPEG, PNG, WebP and BMP, 8 bits"):
        next(read_frames([str(tmp_path / "in")], CAMERAS))


def test_a_camera_of_another_format_does_not_go_missing(tmp_path: Path) -> None:
    write_folder(tmp_path / "all" / "CAM_FRONT", [1])
    write_folder(tmp_path / "all" / "CAM_LEFT", [1], "img{}.ppm".format)
    with pytest.raises(DataError, match=r"CAM_LEFT: no images .* 1 \.ppm"):
        next(read_frames([str(tmp_path / "all")], CAMERAS))
    (tmp_path / "all" / "CAM_LEFT").rename(tmp_path / "all" / "notes")  # no camera of the bundle
    assert list(next(read_frames([str(tmp_path / "all")], CAMERAS)).images) == ["CAM_FRONT"]


def test_pictures_of_other_formats_beside_taken_ones_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "in", [1, 2])
    Image.fromarray(picture(3)).save(tmp_path / "in" / "img9.tif")
    with caplog.at_level(logging.WARNING, logger="drivekd"):
        assert len(list(read_frames([str(tmp_path / "in")], CAMERAS))) == 2
    assert "left out 1 .tif" in caplog.text
