"""Object tags and their coordinates: a hundred bins a side, so that a coordinate is one word of a small vocabulary.

A coordinate is the normalised centre of an object's box, moved to the centre of its bin and printed with three
decimals: 0.005, 0.015 ... 0.995. Half a bin is 8 px across a 1600 px wide nuScenes picture and 4.5 px down; together
within the 16 px of DriveLM's match rule.
"""

from __future__ import annotations

NUM_BINS = 100

COORDINATE_WORDS: tuple[str, ...] = tuple(f"{(index + 0.5) / NUM_BINS:.3f}" for index in range(NUM_BINS))
"""Every coordinate that a tag can hold, in rising order."""


def bin_center(value: float) -> float:
    """The centre of the bin that holds `value` (0..1; values outside are moved to the nearest edge bin)."""
    index = min(NUM_BINS - 1, max(0, int(value * NUM_BINS)))
    return (index + 0.5) / NUM_BINS


def format_coordinate(value: float) -> str:
    """`value` (0..1) as one of COORDINATE_WORDS: 0.4871 becomes "0.485"."""
    return f"{bin_center(value):.3f}"


def format_tag(number: int, camera: str, x: float, y: float) -> str:
    """The tag of object `number` (from 1) at the normalised box centre x, y: <c1,CAM_FRONT,0.485,0.625>."""
    return f"<c{number},{camera},{format_coordinate(x)},{format_coordinate(y)}>"
