"""From the picture paths that a file of records holds to files here."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from drivekd.data.traces import is_worldwide_name

_MAX_SEARCHES = 200  # distinct paths, before it is settled that none of the file's lies below the root


class PictureFinder:
    """Turns the picture paths of one file into paths here; decides once for the file how many leading parts to drop.

    Data sets write "../nuscenes/samples/...", "data/nuscenes/samples/..." or ".../samples/...": the number of parts is the
    smallest that makes the first picture exist which is found at all, leading dots dropped where that finds it, too. A folder is
    left of the path, or a file name that is given once in the world: "1.jpg" alone may be any picture. `drop`
    False: no part is ever dropped.
    """

    def __init__(self, root: Path, *, drop: bool = True) -> None:
        self._root = root
        self._num_dropped: int | None = None if drop else 0
        self._searches = 0
        self._found: dict[str, Path] = {}

    def find(self, path: str) -> Path:
        """The file that `path` means; it need not exist. An absolute path stays one unless parts are dropped."""
        known = self._found.get(path)
        if known is None:
            known = self._path(path)
            if len(self._found) > 20_000:  # a frame's pictures are asked for again and again, older frames' are not
                self._found.clear()
            self._found[path] = known
        return known

    def _path(self, path: str) -> Path:
        parts = PurePosixPath(path).parts
        if self._num_dropped is None:
            self._search(parts)
        return self._root.joinpath(*parts[self._num_dropped or 0 :])

    def _search(self, parts: tuple[str, ...]) -> None:
        if not parts:
            return
        dots = next((place for place, part in enumerate(parts) if part.strip(".")), 0)
        folders = len(parts) if is_worldwide_name(Path(parts[-1])) else max(1, len(parts) - 1)
        for num_dropped in (*range(dots, folders), *range(dots)):
            if os.path.isfile(self._root.joinpath(*parts[num_dropped:])):
                self._num_dropped = num_dropped
                self._found.clear()  # what was asked before was looked for elsewhere
                return
        self._searches += 1
        if self._searches >= _MAX_SEARCHES:
            self._num_dropped = 0
