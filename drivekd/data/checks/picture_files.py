"""Every picture of a file is decoded once, on threads, while the records go by."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from drivekd.errors import DataError
from drivekd.images import load_image
from drivekd.sample import Sample

_THREADS = 8  # decoding releases the GIL; network disks gain from more threads than cores
_WAITING = 64  # pictures under way; a decoded one may have 64 megapixels


class PictureFiles:
    """report: called with kind, and "FILE, record N: images: what", of the first record that shows a bad picture. bad: hashes of
    bad pictures' paths."""

    def __init__(self, report: Callable[[str, str], None]) -> None:
        self._report = report
        self._seen: set[int] = set()
        self._pool = ThreadPoolExecutor(_THREADS)
        self._waiting: deque[tuple[Path, str, Future[tuple[str, str] | None]]] = deque()
        self.bad: set[int] = set()

    @property
    def count(self) -> int:
        """Distinct pictures."""
        return len(self._seen)

    def look(self, sample: Sample) -> None:
        """Decode those of its pictures that are new, some time."""
        for picture in sample.images:
            if (name := hash(picture)) not in self._seen:
                self._seen.add(name)
                self._waiting.append((picture, sample.source, self._pool.submit(_fault, picture)))
                if len(self._waiting) > _WAITING:
                    self._settle()

    def close(self) -> None:
        """Wait for all."""
        while self._waiting:
            self._settle()
        self._pool.shutdown()

    def _settle(self) -> None:
        picture, source, decoded = self._waiting.popleft()
        if (fault := decoded.result()) is not None:
            kind, text = fault
            self.bad.add(hash(picture))
            self._report(kind, f"{source}: images: {text}")


def _fault(picture: Path) -> tuple[str, str] | None:
    if not os.path.isfile(picture):  # a name that is too long is no error
        return "missing picture", f"no file {picture}"
    try:
        load_image(picture)
    except DataError as error:
        return "broken picture", str(error)
    return None
