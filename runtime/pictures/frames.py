"""What `drivekd run` is given, as frames: images by camera name, one moment after another.

    a.jpg b.jpg                        one frame; unnamed files take the bundle's cameras in order
    CAM_BACK=b.jpg CAM_FRONT=a.jpg     one frame
    clip.mp4                           one camera, a frame a picture
    pictures/                          one camera, a frame an image, in the order of their names (img2 before img10)
    samples/                           folders named after cameras: frame n is the n-th image of each
    CAM_FRONT=f.mp4 CAM_BACK=back/     several cameras; frame n is the n-th picture of each

Nothing is read before its frame is asked for: a long video takes the memory of one picture a camera. Videos need PyAV, the extra
`video`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from drivekd.camera_order import cameras_in_paths
from drivekd.errors import DataError, UsageError
from drivekd.image_format import FORMATS_TAKEN, IMAGE_SUFFIXES, suffixes_not_taken
from drivekd.images import RGBImage, load_image
from drivekd.log import logger


@dataclass(frozen=True)
class VideoPicture:
    """image: uint8 RGB [H, W, 3], turned as the file says. time_s: since the start of the video."""

    index: int
    time_s: float
    image: RGBImage


def video_pictures(path: Path, *, every: int = 1) -> Iterator[VideoPicture]:
    """Decode a video; every: give pictures 0, every, 2 * every, ... alone.

    Raises UsageError without PyAV, DataError when the file cannot be read or holds no picture.
    """
    try:
        import av
    except ImportError as error:
        raise UsageError("reading a video needs PyAV: pip install 'drivekd[video]'") from error
    index = -1
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video stream")
            for index, picture in enumerate(container.decode(video=0)):
                if index % every == 0:
                    yield VideoPicture(index, float(picture.time or 0.0), _upright(picture))
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path}: video cannot be read ({error})") from error
    if index < 0:
        raise DataError(f"{path}: video without a picture")


def _upright(picture: Any) -> RGBImage:
    """A camera mounted on its side or head writes a rotation beside its pictures; players apply it, so must we."""
    pixels: RGBImage = picture.to_ndarray(format="rgb24")
    quarter_turns = round(getattr(picture, "rotation", 0) / 90)  # degrees counter-clockwise; PyAV below 12.3 does not tell
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns % 4 else pixels


UNNAMED = "camera_"  # of a camera that the bundle has no name for
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")


@dataclass(frozen=True)
class Frame:
    """One moment.

    index: of the picture in its video or folder. name: short, and good for a file name. source: for people and messages.
    images: uint8 RGB [H, W, 3] by camera. time_s: since a video began, None elsewhere.
    one_of_many: it is from a video or a folder.
    """

    index: int
    name: str
    source: str
    images: Mapping[str, RGBImage]
    time_s: float | None = None
    one_of_many: bool = False


@dataclass(frozen=True)
class _Picture:
    index: int
    source: str
    image: RGBImage
    time_s: float | None = None


Stream: TypeAlias = Iterator[_Picture]


def read_frames(words: Sequence[str], cameras: Sequence[str] = (), *, every: int = 1) -> Iterator[Frame]:
    """The frames that the words name (see above). cameras: those the bundle knows, () = any. every: of a video's or a folder's
    pictures take 0, every, 2 * every, ...

    What the words mean is settled at the first frame; later frames are read when they are asked for. Cameras whose streams end
    at different frames end together, with a warning.
    Raises UsageError (nothing named, unknown camera, more words than cameras), DataError (an unreadable file, an empty folder).
    """
    if every < 1:
        raise UsageError(f"every is {every}; expected 1 (each frame) or more")
    paths = _by_camera(words, cameras)
    moving = [path for path in paths.values() if _is_moving(path)]
    if not moving:
        yield _still_frame(paths)
    elif len(moving) == len(paths):
        yield from _zip_streams({name: _stream(path, every) for name, path in paths.items()})
    else:
        still = next(path for path in paths.values() if not _is_moving(path))
        raise UsageError(f"{still} is one picture, {moving[0]} many; give images of one moment, or a video or folder per camera")


def _by_camera(words: Sequence[str], cameras: Sequence[str]) -> dict[str, Path]:
    """Paths by camera name; unnamed ones take the bundle's cameras in order."""
    if not words:
        raise UsageError("no images: give image files, a folder of them, or a video")
    if len(words) == 1 and (folders := _camera_folders(Path(words[0]), cameras)):
        return folders
    unnamed = iter(cameras or tuple(f"{UNNAMED}{index}" for index in range(len(words))))
    paths: dict[str, Path] = {}
    for word in words:
        name, path = _split_name(word) or (next(unnamed, ""), word)
        if not name or name in paths:
            known = ", ".join(cameras) or "any camera"
            advice = "name each as CAMERA=FILE; pictures of one camera, one after another, are a folder"
            raise UsageError(f"{word}: {len(words)} images for {known}; {advice}")
        if cameras and name not in cameras:
            raise UsageError(f"{word}: camera {name!r} is unknown to this bundle; it has: {', '.join(cameras)}")
        if path == word:
            _refuse_other_camera(path, name, cameras)
        paths[name] = Path(path)
    return paths


def _refuse_other_camera(path: str, taken_for: str, cameras: Sequence[str]) -> None:
    """A file whose folder or name says one camera would be seen at the place of another, and the answers would look sound."""
    here = Path(path)
    named = {*cameras_in_paths([path]), *(camera for camera in cameras if camera in (here.parent.name, here.stem))}
    if cameras and named and taken_for not in named:
        other = min(named)
        raise UsageError(
            f"{path}: taken for {taken_for} by its place, but its path names {other}; say which it is: {other}={path}, or "
            f"{taken_for}={path}"
        )


def _split_name(word: str) -> tuple[str, str] | None:
    """CAMERA=FILE; a file whose own name has "=" in it is no camera."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and "/" not in name and not Path(word).exists() else None


def _camera_folders(folder: Path, cameras: Sequence[str]) -> dict[str, Path]:
    """Folders of images inside `folder`, in the bundle's order; those of unknown cameras are left out. {} when there are none."""
    if not folder.is_dir() or _images_in(folder):
        return {}
    folders = [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and not inner.name.startswith(".")]
    found = {inner.name: inner for inner in folders if _images_in(inner)}
    for inner in folders:
        if inner.name not in found and _others_in(inner) and inner.name in (cameras or (inner.name,)):
            raise _no_images(inner)  # a camera of other formats must not go missing
    if cameras and found and not set(found) & set(cameras):
        raise UsageError(f"{folder} has folders {', '.join(found)}; this bundle's cameras are {', '.join(cameras)}")
    return {name: found[name] for name in (cameras or found) if name in found}


def _is_moving(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES


def _still_frame(paths: Mapping[str, Path]) -> Frame:
    first = next(iter(paths.values()))
    source = ", ".join(path.name for path in paths.values())
    return Frame(0, first.stem, source, {name: load_image(path) for name, path in paths.items()})


def _stream(path: Path, every: int) -> Stream:
    if path.is_dir():
        return _folder_pictures(path, every)
    return (
        _Picture(picture.index, f"{path.name} at {picture.time_s:.2f} s", picture.image, picture.time_s)
        for picture in video_pictures(path, every=every)
    )


def _folder_pictures(folder: Path, every: int) -> Stream:
    files = _images_in(folder)
    if not files:
        raise _no_images(folder)
    if others := _others_in(folder):
        logger.warning(f"{folder}: left out {others}: images that are not {FORMATS_TAKEN}; convert them to be asked about them")
    for index in range(0, len(files), every):
        yield _Picture(index, files[index].name, load_image(files[index]))


def _images_in(folder: Path) -> list[Path]:
    """In the order a person means: img2 before img10."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
    return sorted(
        files, key=lambda file: [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(file.name)]
    )


def _others_in(folder: Path) -> str:
    """Images of formats that are not taken, as "3 .tif"; "" when there are none."""
    return suffixes_not_taken(file.name for file in folder.iterdir())


def _no_images(folder: Path) -> DataError:
    others = _others_in(folder)
    advice = f"; it holds {others}: convert them to {FORMATS_TAKEN}, 8 bits a channel" if others else ""
    return DataError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder{advice}")


_NUMBERS = re.compile(r"(\d+)")


def _zip_streams(streams: Mapping[str, Stream]) -> Iterator[Frame]:
    """Picture n of every camera is frame n, until the first stream ends."""
    while True:
        pictures = {name: next(stream, None) for name, stream in streams.items()}
        taken = {name: picture for name, picture in pictures.items() if picture is not None}
        if len(taken) < len(pictures):
            if taken:
                ended = ", ".join(name for name in pictures if name not in taken)
                logger.warning("%s ended while %s had more pictures: stopped there", ended, ", ".join(taken))
            return
        first = next(iter(taken.values()))
        images = {name: picture.image for name, picture in taken.items()}
        source = first.source + (f" and {len(taken) - 1} more" if len(taken) > 1 else "")
        yield Frame(first.index, f"{first.index:06d}", source, images, first.time_s, one_of_many=True)
