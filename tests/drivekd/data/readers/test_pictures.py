"""Where the picture paths of a file lead: leading parts are dropped once for the file, by the first picture that is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivekd.data.readers.pictures import PictureFinder


def made(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("start", ["", "../nuscenes/", "data/nuscenes/", ".../", "/mnt/other/nuscenes/"])
def test_the_smallest_number_of_parts_is_dropped(tmp_path: Path, start: str) -> None:
    made(tmp_path, "samples/CAM_BACK/1.jpg", "samples/CAM_FRONT/1.jpg")
    finder = PictureFinder(tmp_path)
    for camera in ("CAM_BACK", "CAM_FRONT"):
        assert finder.find(f"{start}samples/{camera}/1.jpg") == tmp_path / "samples" / camera / "1.jpg"


def test_a_missing_first_picture_decides_nothing(tmp_path: Path) -> None:
    made(tmp_path, "samples/2.jpg")
    finder = PictureFinder(tmp_path)
    assert finder.find("data/samples/1.jpg") == tmp_path / "data/samples/1.jpg"
    assert finder.find("data/samples/2.jpg") == tmp_path / "samples/2.jpg"
    assert finder.find("data/samples/1.jpg") == tmp_path / "samples/1.jpg", "now it is known where it would be"


def test_a_file_name_alone_may_be_any_picture(tmp_path: Path) -> None:
    made(tmp_path, "1.jpg", "9afb9daf-81ca742d.jpg")
    assert PictureFinder(tmp_path).find("train/1.jpg") == tmp_path / "train/1.jpg"
    assert PictureFinder(tmp_path).find("100k/9afb9daf-81ca742d.jpg") == tmp_path / "9afb9daf-81ca742d.jpg"


def test_without_dropping_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    made(tmp_path, "samples/1.jpg")
    finder = PictureFinder(tmp_path, drop=False)
    assert finder.find("data/samples/1.jpg") == tmp_path / "data/samples/1.jpg"
    assert finder.find("/data/1.jpg") == Path("/data/1.jpg")
