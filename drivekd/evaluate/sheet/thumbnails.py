"""Camera pictures as small JPEGs for a page, each file read once, and all of them within a budget of bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from drivekd.errors import DataError
from drivekd.evaluate.sheet.document import Picture

WIDTH_PX = 320
QUALITY = 72
MOST_BYTES = 1_900_000  # of all pictures; base64 makes 2.5 MB of it, and leaves room for words in a page of 3 MB


class Thumbnails:
    """budget_bytes: what all pictures together may take; those that no longer fit say so."""

    def __init__(self, budget_bytes: int = MOST_BYTES) -> None:
        self._left_bytes = budget_bytes
        self._known: dict[Path, Picture] = {}

    def of(self, paths: Sequence[Path], cameras: Sequence[str]) -> tuple[Picture, ...]:
        """A picture for each path; cameras: their names, () = not known."""
        names = tuple(cameras) if len(cameras) == len(paths) else ("",) * len(paths)
        return tuple(self._picture(path, camera) for path, camera in zip(paths, names, strict=True))

    def _picture(self, path: Path, camera: str) -> Picture:
        if path not in self._known:
            self._known[path] = self._read(path)
        return replace(self._known[path], camera=camera)

    def _read(self, path: Path) -> Picture:
        from PIL import Image

        from drivekd.images import load_image

        try:
            pixels = load_image(path)
        except (DataError, ValueError) as error:  # ValueError: no file can have such a name
            return Picture("", str(path), problem=f"{path}: {str(error).removeprefix(f'{path}: ')}")
        image = Image.fromarray(pixels)
        width, height = min(WIDTH_PX, image.width), max(1, round(image.height * min(WIDTH_PX, image.width) / image.width))
        buffer = io.BytesIO()
        image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0).save(
            buffer, "JPEG", quality=QUALITY, optimize=True
        )
        jpeg = buffer.getvalue()
        if len(jpeg) > self._left_bytes:
            return Picture("", str(path), problem=f"{path}: not shown, the page is full")
        self._left_bytes -= len(jpeg)
        return Picture("", str(path), width, height, jpeg)
