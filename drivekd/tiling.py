"""How many tiles of a vision tower one camera picture is cut into: "1x1" as released, "2x1", "3x2+thumbnail".

A picture is resized to columns x rows tiles and cut row by row; the thumbnail, the whole picture in one tile, comes last. So
InternVL's own processor does it, which chooses the grid by the picture's shape (transformers' GotOcr2ImageProcessor with
crop_to_patches); here a checkpoint has one grid, so that prompts keep one length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_TILES = 12  # of a grid, without its thumbnail: the most that InternVL was trained with (max_dynamic_patch)
_TEXT = re.compile(r"([1-9][0-9]?)x([1-9][0-9]?)(\+thumbnail)?")


@dataclass(frozen=True)
class Tiling:
    """columns, rows: of the grid. thumbnail: whether the whole picture follows as one more tile. str(): as `parse` reads it."""

    columns: int = 1
    rows: int = 1
    thumbnail: bool = False

    @classmethod
    def parse(cls, text: str) -> Tiling:
        """Read "2x1" or "2x1+thumbnail": columns x rows. Raises ValueError, saying what would be right."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"expected columns x rows such as 1x1, 2x1 or 2x1+thumbnail, found {text!r}")
        tiling = cls(int(found[1]), int(found[2]), found[3] is not None)
        if tiling.columns * tiling.rows > MAX_TILES:
            raise ValueError(
                f"{text} has {tiling.columns * tiling.rows} tiles beside any thumbnail; expected at most {MAX_TILES}"
            )
        if tiling.thumbnail and not tiling.is_grid:
            raise ValueError(f"{text} would show the same tile twice; write 1x1")
        return tiling

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows}" + ("+thumbnail" if self.thumbnail else "")

    @property
    def is_grid(self) -> bool:
        """Whether a picture becomes more than one tile."""
        return self.columns * self.rows > 1

    @property
    def num_tiles(self) -> int:
        """Of one picture, the thumbnail counted."""
        return self.columns * self.rows + self.thumbnail


def cut(picture: NDArray[np.uint8], tiling: Tiling) -> NDArray[np.uint8]:
    """A picture [rows * H, columns * W, 3] -> its tiles one below the other, row by row, [rows * columns * H, W, 3]."""
    height, width = picture.shape[0] // tiling.rows, picture.shape[1] // tiling.columns
    split = picture.reshape(tiling.rows, height, tiling.columns, width, 3)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(-1, width, 3)
