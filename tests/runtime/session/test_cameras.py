"""Declared rates: which tile stands at which time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.errors import UsageError
from drivekd.images import RGBImage
from drivekd.runtime.session.cameras import Refresh

FRONT, BACK = "CAM_FRONT", "CAM_BACK"


def tile(number: int) -> RGBImage:
    return np.full((2, 2, 3), number, np.uint8)


def shown(refresh: Refresh, frame: int, now_s: float, cameras: tuple[str, ...] = (FRONT, BACK)) -> list[int]:
    """Which frame's tile stands for each camera."""
    tiles = refresh.taken({camera: tile(frame) for camera in cameras}, now_s)
    assert list(tiles) == list(cameras), "order decides what K/V means"
    return [int(found[0, 0, 0]) for found in tiles.values()]


def test_without_rates_every_tile_is_taken() -> None:
    refresh = Refresh({})
    assert [shown(refresh, frame, frame / 10) for frame in range(3)] == [[0, 0], [1, 1], [2, 2]]
    assert refresh.ages_s == {FRONT: 0.0, BACK: 0.0}


def test_a_rate_that_divides_the_frames_takes_every_nth() -> None:
    """Ten frames a second, whose times are sums of .1 as a driver makes them: 2 Hz is every fifth."""
    refresh, now_s, found = Refresh({BACK: 2.0}), 0.0, []
    for frame in range(20):
        found.append(shown(refresh, frame, now_s))
        now_s += 0.1
    assert [front for front, _ in found] == list(range(20))
    assert [back for _, back in found] == [frame - frame % 5 for frame in range(20)]


times = st.lists(st.floats(0, 5), min_size=1, max_size=40).map(sorted)


@settings(deadline=None)
@given(times, st.floats(0.2, 50))
def test_a_camera_is_taken_at_most_at_its_rate_and_as_soon_as_it_is_due(moments: list[float], rate_hz: float) -> None:
    refresh, takes = Refresh({BACK: rate_hz}), []
    for frame, now_s in enumerate(moments):
        stood = shown(refresh, frame, now_s)[1]
        if stood == frame:
            takes.append(now_s)
        else:
            assert now_s - takes[-1] < 1 / rate_hz, "a tile stood longer than its period"
        assert refresh.ages_s == {FRONT: 0.0, BACK: now_s - takes[-1]}
    assert all(later - earlier >= 0.998 / rate_hz for earlier, later in pairwise(takes))


def test_a_reused_buffer_does_not_change_a_tile_that_stands() -> None:
    refresh, buffer = Refresh({FRONT: 1.0}), tile(1)
    refresh.taken({FRONT: buffer}, 0.0)
    buffer[:] = 2
    assert (refresh.taken({FRONT: buffer}, 0.5)[FRONT] == 1).all()
    assert (refresh.taken({FRONT: buffer}, 1.0)[FRONT] == 2).all()


def test_a_clock_that_goes_back_takes_anew() -> None:
    """A tile that stands until the old time comes again would stand for hours."""
    refresh = Refresh({BACK: 1.0})
    assert [shown(refresh, frame, now_s)[1] for frame, now_s in enumerate([1000.0, 1000.5, 3.0, 3.5, float("nan"), 3.6])] == [
        *(0, 0, 2, 2),
        *(4, 5),
    ]


def test_a_camera_that_was_away_keeps_its_time() -> None:
    refresh = Refresh({BACK: 1.0})
    shown(refresh, 0, 0.0)
    assert shown(refresh, 1, 0.4, (FRONT,)) == [1]
    assert refresh.ages_s == {FRONT: 0.0}
    assert shown(refresh, 2, 0.8) == [2, 0]
    assert shown(refresh, 3, 1.2) == [3, 3]


def test_a_tile_of_another_size_is_taken() -> None:
    refresh = Refresh({FRONT: 1.0})
    refresh.taken({FRONT: tile(1)}, 0.0)
    assert refresh.taken({FRONT: np.zeros((4, 2, 3), np.uint8)}, 0.1)[FRONT].shape == (4, 2, 3)


def test_the_clock_is_this_machines_unless_told() -> None:
    refresh = Refresh({FRONT: 1e-4})
    assert (refresh.taken({FRONT: tile(1)})[FRONT] == refresh.taken({FRONT: tile(2)})[FRONT]).all()
    assert 0 <= refresh.ages_s[FRONT] < 1e4


@pytest.mark.parametrize("rate_hz", [0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_above_zero(rate_hz: float) -> None:
    with pytest.raises(UsageError, match=rf"'CAM_BACK' has {rate_hz} Hz; expected a rate above 0"):
        Refresh({BACK: rate_hz})


def test_an_unknown_camera_is_refused() -> None:
    with pytest.raises(UsageError, match="camera 'CAM_BAK' is unknown to this bundle; it has: CAM_FRONT, CAM_BACK"):
        Refresh({"CAM_BAK": 1.0}, (FRONT, BACK))
    Refresh({"anything": 1.0})
