"""How large records' pictures are: a position in pixels is one of the camera's own picture."""

from __future__ import annotations

from functools import lru_cache

from drivekd.images import image_size_px

KEPT = 1 << 16  # sizes of so many pictures are kept


class PictureSizes:
    """Width and height in px by path; each file's head is read once. Raises DataError as image_size_px does."""

    def __init__(self) -> None:
        self.of = lru_cache(maxsize=KEPT)(image_size_px)
