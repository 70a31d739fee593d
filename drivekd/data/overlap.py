"""What two data files share: whoever trains on one and scores on the other must know.

DriveBench is made from DriveLM's train split, for example. Four traces are compared: scene tokens, frame tokens, image
files (by path, by the names that nuScenes and BDD100K give once in the world) and image contents.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from drivekd.data.convert import ImageFinder
from drivekd.data.foreign import detect_format
from drivekd.data.json_file import read_json
from drivekd.data.readers import foreign_records
from drivekd.errors import DataError

# nuScenes: LOG__CAMERA__MICROSECONDS; BDD100K: two words of eight hexadecimal digits. "000001.png" is no trace.
_WORLDWIDE_NAME = re.compile(r".+__CAM_[A-Z_]+__\d+|[0-9a-f]{8}-[0-9a-f]{8}")


@dataclass(frozen=True)
class OverlapReport:
    """What both files hold, each sorted. image_contents: pairs "A = B" of files with the same bytes (SHA-256)."""

    a: Path
    b: Path
    scenes: tuple[str, ...]
    frames: tuple[str, ...]
    image_paths: tuple[str, ...]
    image_names: tuple[str, ...]
    image_contents: tuple[str, ...]

    @property
    def disjoint(self) -> bool:
        """Whether the two share nothing that could leak an answer."""
        return not any(shared for _, shared in self._traces())

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(trace, how many are shared and the first of them), for a table."""
        return tuple((name, f"{len(shared)}, first {shared[0]}" if shared else "0") for name, shared in self._traces())

    def _traces(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return (
            ("scenes", self.scenes),
            ("frames", self.frames),
            ("image paths", self.image_paths),
            ("image names", self.image_names),
            ("image contents", self.image_contents),
        )


@dataclass
class _Traces:
    scenes: set[str] = field(default_factory=set)
    frames: set[str] = field(default_factory=set)
    images: set[Path] = field(default_factory=set)

    def names(self) -> set[str]:
        return {image.name for image in self.images if _WORLDWIDE_NAME.fullmatch(image.stem)}


def overlap(a: Path, b: Path, *, image_root: Path | None = None) -> OverlapReport:
    """Compare two files of any known format: Drive-KD, DriveLM, DriveBench, DriveBench's visual_description.json.

    image_root: where relative image paths of both files start; each file's own folder when None. Raises DataError.
    """
    in_a, in_b = _read_traces(a, image_root), _read_traces(b, image_root)
    return OverlapReport(
        a=a,
        b=b,
        scenes=_shared(in_a.scenes, in_b.scenes),
        frames=_shared(in_a.frames, in_b.frames),
        image_paths=_shared(map(str, in_a.images), map(str, in_b.images)),
        image_names=_shared(in_a.names(), in_b.names()),
        image_contents=_same_contents(in_a.images, in_b.images),
    )


def _shared(a: Iterable[str], b: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(a) & set(b) - {""}))


def _read_traces(path: Path, image_root: Path | None) -> _Traces:
    document = read_json(path)
    found = detect_format(document, path)
    root = path.parent if image_root is None else image_root
    if found == "drivekd":
        assert isinstance(document, list)
        return _drivekd_traces(document, root)
    if found == "visual_description":
        assert isinstance(document, dict)
        return _description_traces(document)
    records = foreign_records(document, path, found)
    images = ImageFinder(records, root)
    return _Traces(
        scenes={record.scene for record in records},
        frames={record.frame for record in records},
        images={images.find(image).resolve() for record in records for image in record.image_paths.values()},
    )


def _drivekd_traces(records: list[object], root: Path) -> _Traces:
    """Read leniently: a record that training would refuse still leaks."""
    traces = _Traces()
    for record in records:
        if not isinstance(record, dict):
            continue
        meta, images = record.get("meta"), record.get("images")
        if isinstance(meta, dict):
            traces.scenes.add(str(meta.get("scene", "")))
            traces.frames.add(str(meta.get("frame", "")))
        if isinstance(images, list):
            traces.images.update((root / image).resolve() for image in images if isinstance(image, str))
    return traces


def _description_traces(document: dict[str, object]) -> _Traces:
    traces = _Traces(scenes=set(document))
    for scene in document.values():
        frames = scene.get("key_frames") if isinstance(scene, dict) else None
        traces.frames.update(frames if isinstance(frames, dict) else ())
    return traces


def _same_contents(a: Iterable[Path], b: Iterable[Path]) -> tuple[str, ...]:
    """Files with the same bytes; only those whose size occurs on both sides are read."""
    sizes_a, sizes_b = _by_size(a), _by_size(b)
    common = sizes_a.keys() & sizes_b.keys()
    hashes_a = _by_hash(path for size in common for path in sizes_a[size])
    hashes_b = _by_hash(path for size in common for path in sizes_b[size])
    return tuple(sorted(f"{hashes_a[digest]} = {hashes_b[digest]}" for digest in hashes_a.keys() & hashes_b.keys()))


def _by_size(paths: Iterable[Path]) -> dict[int, list[Path]]:
    sizes = defaultdict(list)
    for path in paths:
        if path.is_file():
            sizes[path.stat().st_size].append(path)
    return sizes


def _by_hash(paths: Iterable[Path]) -> dict[str, Path]:
    """SHA-256 -> the first file, by name, that has it."""
    ordered = sorted(paths)
    with ThreadPoolExecutor() as pool:
        return dict(reversed(list(zip(pool.map(_sha256, ordered), ordered, strict=True))))


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: image cannot be read ({error.strerror})") from error
