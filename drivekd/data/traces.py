"""What a set of records leaves behind for whoever must know later whether a question was trained on: 8-byte hashes, no text.

Five kinds, each a sorted array of distinct uint64: scenes; frames; names, of pictures that nuScenes and BDD100K name once in the
world; contents, SHA-256 of picture files (only where asked for, since every file is read); questions, texts alone. The first four
say that a record shows what training saw; a question's text alone says little, "What matters here?" is asked of every frame.

A file of traces, data_traces.safetensors, holds one array a kind. Two texts have one hash by chance with probability 5e-20, so a
million records against a million wrongly share one with probability 5e-8.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from drivekd.errors import DataError
from drivekd.files import TRACES_FILE, file_digest, write_whole
from drivekd.sample import Sample

FILE_NAME = TRACES_FILE
Hashes: TypeAlias = NDArray[np.uint64]  # [N], sorted, each once

# nuScenes: LOG__CAMERA__MICROSECONDS; BDD100K: two words of eight hexadecimal digits. "000001.png" is no trace.
_WORLDWIDE_NAME = re.compile(r".+__CAM_[A-Z_]+__\d+|[0-9a-f]{8}-[0-9a-f]{8}")
_FORMAT = "drivekd-data-traces-1"


def is_worldwide_name(picture: Path) -> bool:
    """Whether a picture's name is given once in the world, as nuScenes and BDD100K give them."""
    return _WORLDWIDE_NAME.fullmatch(picture.stem) is not None


def text_hash(text: str) -> int:
    """The first 8 bytes of a text's BLAKE2b; a lone surrogate counts as what it is."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Traces:
    """Hashes of what records name and show, by kind; see the module. contents is empty where pictures were not read."""

    scenes: Hashes
    frames: Hashes
    names: Hashes
    contents: Hashes
    questions: Hashes

    def write(self, path: Path) -> None:
        """Write the file whole or not at all. Raises OSError."""
        from safetensors.numpy import save

        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_whole(path, save(arrays, metadata={"format": _FORMAT}))


class TraceCollector:
    """Gathers Traces of records that come one by one. contents: read every picture that exists, too."""

    def __init__(self, *, contents: bool = False) -> None:
        self._contents = contents
        self._found: dict[str, set[int]] = {field.name: set() for field in fields(Traces)}
        self._read: set[Path] = set()

    def add(self, sample: Sample) -> None:
        """Raises DataError naming a picture that is there and cannot be read."""
        for kind, texts in _texts(sample).items():
            self._found[kind].update(map(text_hash, texts))
        if self._contents:
            for picture in set(sample.images) - self._read:
                self._read.add(picture)
                self._found["contents"].update(_content_hash(picture))

    def traces(self) -> Traces:
        """Of all that was added so far."""
        return Traces(**{kind: np.array(sorted(found), np.uint64) for kind, found in self._found.items()})


def traces_of(samples: Iterable[Sample], *, contents: bool = False) -> Traces:
    """Traces of samples. contents: hash the files of their pictures as well, which reads each once.

    >>> from drivekd.sample import Sample
    >>> seen = Sample("a.json, record 1", "planning", "What is safe?", "Brake.", (), scene="scene-7")
    >>> asked = Sample("b.json, record 9", "planning", "Is the lane free?", "No.", (), scene="scene-7")
    >>> overlapping(traces_of([seen]), [asked])
    [True]
    """
    collector = TraceCollector(contents=contents)
    for sample in samples:
        collector.add(sample)
    return collector.traces()


def read_traces(path: Path) -> Traces:
    """Read what Traces.write wrote. Raises DataError naming the file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            found = (file.metadata() or {}).get("format")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: traces of training data cannot be read ({error})") from error
    wanted = {field.name for field in fields(Traces)}
    if found != _FORMAT or set(arrays) != wanted or any(a.dtype != np.uint64 or a.ndim != 1 for a in arrays.values()):
        raise DataError(f"{path}: expected {_FORMAT} with uint64 arrays {', '.join(sorted(wanted))}; found {found!r}")
    return Traces(**{name: np.unique(array) for name, array in arrays.items()})  # a foreign writer may not have sorted


def overlapping(traces: Traces, samples: Sequence[Sample]) -> list[bool]:
    """For each sample whether its scene, its frame or one of its pictures (by name, by content) is among the traces.

    Contents are compared where the traces have them; a question's text alone marks nothing.
    """
    scenes, frames, names = set(traces.scenes.tolist()), set(traces.frames.tolist()), set(traces.names.tolist())
    is_seen_content = _content_test(traces)

    def is_seen(sample: Sample) -> bool:
        own = _texts(sample)
        pairs = ((own["scenes"], scenes), (own["frames"], frames), (own["names"], names))
        if any(text_hash(text) in known for texts, known in pairs for text in texts):
            return True
        return any(map(is_seen_content, sample.images))

    return [is_seen(sample) for sample in samples]


def _content_test(traces: Traces) -> Callable[[Path], bool]:
    """Whether a picture's content is among the traces; every file is read once, none where there is nothing to compare with."""
    contents, known = set(traces.contents.tolist()), dict[Path, bool]()

    def is_seen(picture: Path) -> bool:
        if picture not in known:
            known[picture] = bool(contents) and not contents.isdisjoint(_content_hash(picture))
        return known[picture]

    return is_seen


def _texts(sample: Sample) -> dict[str, tuple[str, ...]]:
    return {
        "scenes": (sample.scene,) if sample.scene else (),
        "frames": (sample.frame,) if sample.frame else (),
        "names": tuple(picture.stem for picture in sample.images if is_worldwide_name(picture)),
        "questions": (sample.question,),
    }


def _content_hash(picture: Path) -> tuple[int, ...]:
    """The first 8 bytes of a file's SHA-256; nothing for a file that is not there."""
    try:
        return (int(file_digest(picture)[:16], 16),)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(f"{picture}: image cannot be read ({error.strerror})") from error
