"""The word for a grid of tiles, and the cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.tiling import MAX_TILES, Tiling, cut

GRIDS = [(columns, rows) for columns in range(1, 13) for rows in range(1, 13) if columns * rows <= MAX_TILES]


@given(st.sampled_from(GRIDS), st.booleans())
def test_a_tiling_is_read_as_it_is_written(grid: tuple[int, int], thumbnail: bool) -> None:
    tiling = Tiling(*grid, thumbnail and grid != (1, 1))
    assert Tiling.parse(str(tiling)) == tiling
    assert tiling.num_tiles == grid[0] * grid[1] + tiling.thumbnail
    assert tiling.is_grid == (tiling.num_tiles > 1)


def test_one_tile_is_the_default() -> None:
    assert str(Tiling()) == "1x1"
    assert Tiling.parse("2x1+thumbnail") == Tiling(2, 1, True)
    assert Tiling.parse("2x3") == Tiling(columns=2, rows=3)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "2",
            "2x",
            "x1",
            "2X1",
            "2×1",
            "2 x 1",
            "2x1 ",
            " 2x1",
            "02x1",
            "0x1",
            "-1x2",
            "2x1x1",
            "2.0x1",
            "2x1+",
            "2x1+thumb",
        ),
        *("thumbnail", "2x1+Thumbnail", "2x1 + thumbnail", "2x1+thumbnail+thumbnail", "auto", "2,1", "[2, 1]", "1２x1", "2x1\n"),
    ],
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected columns x rows such as 1x1, 2x1 or 2x1\+thumbnail, found"):
        Tiling.parse(text)


@pytest.mark.parametrize("text", ["13x1", "4x4", "5x3+thumbnail", "99x99"])
def test_more_tiles_than_internvl_was_trained_with_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"{text.replace('+', '.')} has \d+ tiles .*at most 12"):
        Tiling.parse(text)


def test_a_thumbnail_of_one_tile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1x1\+thumbnail would show the same tile twice"):
        Tiling.parse("1x1+thumbnail")


def test_tiles_come_row_by_row() -> None:
    """A picture of 2 x 3 tiles, each of one shade: 0 1 2 / 3 4 5."""
    shades = np.arange(6, dtype=np.uint8).reshape(2, 3)
    picture = np.repeat(shades.repeat(4, 0).repeat(5, 1)[..., None], 3, axis=2)  # [8, 15, 3]
    tiles = cut(picture, Tiling(columns=3, rows=2))
    assert tiles.shape == (24, 5, 3)
    assert tiles.flags.c_contiguous
    assert [tiles[4 * i : 4 * i + 4].min() for i in range(6)] == [tiles[4 * i : 4 * i + 4].max() for i in range(6)] == [*range(6)]


@given(st.sampled_from(GRIDS))
def test_every_pixel_is_in_one_tile(grid: tuple[int, int]) -> None:
    tiling = Tiling(*grid)
    picture = np.random.default_rng(0).integers(0, 256, (tiling.rows * 3, tiling.columns * 2, 3), dtype=np.uint8)
    tiles = cut(picture, tiling).reshape(tiling.rows, tiling.columns, 3, 2, 3)
    for row in range(tiling.rows):
        for column in range(tiling.columns):
            expected = picture[3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
            assert np.array_equal(tiles[row, column], expected)
