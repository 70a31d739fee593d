"""What two data files share: whoever trains on one and scores on the other must know.

DriveBench is made from DriveLM's train split, for example. Compared are scene tokens, frame tokens, picture files (by path, by
the names that nuScenes and BDD100K give once in the world, by content) and, for information, the questions' texts. What could not
be compared, since one side does not say it or its pictures are not there, is said so and never counted as nothing shared.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from drivekd.data.traces import is_worldwide_name
from drivekd.errors import DataError

from .named import Named, read_named


@dataclass(frozen=True)
class OverlapReport:
    """What both files hold, each sorted. image_contents: pairs "A = B" of files with the same bytes (SHA-256), "A" where both
    files name the very same one.

    questions: how many distinct question texts are in both, first_question: one of them. pictures: (named, found) of each file.
    """

    a: Path
    b: Path
    scenes: tuple[str, ...]
    frames: tuple[str, ...]
    image_paths: tuple[str, ...]
    image_names: tuple[str, ...]
    image_contents: tuple[str, ...]
    questions: int
    first_question: str
    pictures: tuple[tuple[int, int], tuple[int, int]]
    not_compared: dict[str, str]

    @property
    def disjoint(self) -> bool:
        """Whether the two share nothing that could leak an answer, as far as it could be compared."""
        return not any(shared for _, shared in self._traces())

    @property
    def comparable(self) -> bool:
        """Whether anything could be compared that would show a leak: a scene, a frame, a worldwide name, or contents."""
        return len(self.not_compared) < 4

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(trace, how many are shared and the first of them), for a table."""
        shared_rows = [
            (name, f"{len(shared):,}, first {shared[0]}" if shared else self._none(name)) for name, shared in self._traces()
        ]
        text = self.first_question if len(self.first_question) <= 80 else f"{self.first_question[:77]}..."
        same = f"{self.questions:,} same questions, first {text!r}" if self.questions else "0"
        found = ["{1:,} of {0:,}".format(*side) for side in self.pictures]
        return (*shared_rows, ("question texts (alone no leak)", same), ("pictures found", f"{found[0]} and {found[1]}"))

    def _none(self, name: str) -> str:
        return f"not compared: {self.not_compared[name]}" if name in self.not_compared else "0"

    def _traces(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return (
            ("scenes", self.scenes),
            ("frames", self.frames),
            ("image paths", self.image_paths),
            ("image names", self.image_names),
            ("image contents", self.image_contents),
        )


def overlap(
    a: Path, b: Path, *, image_root: Path | None = None, image_root_a: Path | None = None, image_root_b: Path | None = None
) -> OverlapReport:
    """Compare two files of any format that `read_samples` knows, or DriveBench's visual_description.json, or DriveLM's
    predictions.

    image_root: where relative image paths of both files start, image_root_a and image_root_b those of one; each file's own folder
    when None. Records that training would refuse count, too. Raises DataError for an unreadable file.
    """
    in_a, in_b = read_named(a, image_root_a or image_root), read_named(b, image_root_b or image_root)
    found = [{picture for picture in side.pictures if picture.is_file()} for side in (in_a, in_b)]
    common = in_a.questions.keys() & in_b.questions.keys()
    names = [sorted({p.name for p in side.pictures if is_worldwide_name(p)}) for side in (in_a, in_b)]
    return OverlapReport(
        a=a,
        b=b,
        scenes=_shared(in_a.scenes, in_b.scenes),
        frames=_shared(in_a.frames, in_b.frames),
        image_paths=_shared(map(str, in_a.pictures), map(str, in_b.pictures)),
        image_names=_shared(*names),
        image_contents=_same_contents(*found),
        questions=len(common),
        first_question=in_a.questions[min(common)] if common else "",
        pictures=((len(in_a.pictures), len(found[0])), (len(in_b.pictures), len(found[1]))),
        not_compared=_not_compared(in_a, in_b, names, found, (a, b)),
    )


def _not_compared(a: Named, b: Named, names: list[list[str]], found: list[set[Path]], files: tuple[Path, Path]) -> dict[str, str]:
    """Kind of trace -> why it could not be compared."""
    kinds = {
        "scenes": ((a.scenes, b.scenes), "names {} scene"),
        "frames": ((a.frames, b.frames), "names {} frame"),
        "image names": (tuple(names), "has {} picture whose name is given once in the world"),
        "image contents": (tuple(found), "has {} picture that was found; give --image-root"),
    }
    reasons = {}
    for kind, (sides, reason) in kinds.items():
        missing = [str(file) for side, file in zip(sides, files, strict=True) if not side]
        if len(missing) == 2:
            reasons[kind] = f"neither file {reason.format('a')}"
        elif missing:
            reasons[kind] = f"{missing[0]} {reason.format('no')}"
    return reasons


def _shared(a: Iterable[str], b: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(a) & set(b)))


def _same_contents(a: Iterable[Path], b: Iterable[Path]) -> tuple[str, ...]:
    """Files with the same bytes; only those whose size occurs on both sides are read."""
    sizes_a, sizes_b = _by_size(a), _by_size(b)
    common = sizes_a.keys() & sizes_b.keys()
    hashes_a = _by_hash(path for size in common for path in sizes_a[size])
    hashes_b = _by_hash(path for size in common for path in sizes_b[size])
    pairs = ((str(hashes_a[digest]), str(hashes_b[digest])) for digest in hashes_a.keys() & hashes_b.keys())
    return tuple(sorted(first if first == second else f"{first} = {second}" for first, second in pairs))


def _by_size(paths: Iterable[Path]) -> dict[int, list[Path]]:
    sizes = defaultdict(list)
    for path in paths:
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
