"""Where the player's pictures come from: image files, folders of them, or a video. uint8 RGB [H, W, 3]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from drivekd.errors import DataError
from drivekd.images import load_image
from drivekd.runtime.video import video_pictures

from .input.conversions import RGBImage

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def image_paths(paths: Sequence[Path]) -> list[Path]:
    """Files as they stand; a folder gives its images sorted by name. Raises DataError when nothing is found."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found.append(path)
    if not found:
        raise DataError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in: {', '.join(map(str, paths)) or 'nothing'}")
    return found


def file_frames(paths: Sequence[Path], num_cameras: int) -> list[list[RGBImage]]:
    """Load everything, num_cameras pictures a frame. Raises DataError when they do not divide evenly."""
    files = image_paths(paths)
    if len(files) % num_cameras:
        raise DataError(f"{len(files)} images do not make whole frames of {num_cameras} cameras")
    pictures = [load_image(file) for file in files]
    return [pictures[start : start + num_cameras] for start in range(0, len(pictures), num_cameras)]


def video_frames(video: Path) -> Iterator[RGBImage]:
    """A video file picture by picture. Raises UsageError without PyAV, DataError when it cannot be read."""
    return (picture.image for picture in video_pictures(video))
