"""The mailbox: newest only, anchor and tolerance, missing and stale cameras, drops by reason. No ROS, no waiting."""

from __future__ import annotations

import threading
import time

import pytest
from drivekd_ros.input.drops import DropCounts
from drivekd_ros.input.mailbox import FrameMailbox
from hypothesis import given
from hypothesis import strategies as st

MS = 1_000_000  # ns
START = 1_000_000 * MS


class Desk:
    """A mailbox with a clock that the test moves; stamps are given in ms after the start."""

    def __init__(self, *cameras: str, tolerance_ms: float = 5.0, max_frame_age_ms: float = 200.0) -> None:
        self.now_ms = 0.0
        self.drops = DropCounts()
        self.box: FrameMailbox[str] = FrameMailbox(
            cameras or ("FRONT",),
            anchor=(cameras or ("FRONT",))[0],
            tolerance_ms=tolerance_ms,
            max_frame_age_ms=max_frame_age_ms,
            clock_ns=lambda: START + int(self.now_ms * MS),
            drops=self.drops,
        )

    def put(self, camera: str, stamp_ms: float, message: str = "") -> None:
        self.box.put(camera, START + int(stamp_ms * MS), message or f"{camera}@{stamp_ms:g}")

    def take(self, timeout_s: float = 0.02) -> dict[str, str] | None:
        taken = self.box.take(timeout_s)
        return None if taken is None else {camera: frame.message for camera, frame in taken.frames.items()}


def test_a_frame_is_taken_once() -> None:
    desk = Desk()
    desk.put("FRONT", 0)
    assert desk.take() == {"FRONT": "FRONT@0"}
    assert desk.take() is None
    assert desk.drops.snapshot() == {}


def test_only_the_newest_is_kept_and_the_others_are_counted() -> None:
    desk = Desk()
    for stamp_ms in (0, 10, 20):
        desk.put("FRONT", stamp_ms)
    assert desk.take() == {"FRONT": "FRONT@20"}
    assert desk.drops.snapshot() == {"superseded": 2}


def test_late_and_repeated_stamps_are_dropped_but_a_restarted_source_is_not() -> None:
    desk = Desk(max_frame_age_ms=0)
    desk.put("FRONT", 5000)
    desk.put("FRONT", 4990)
    desk.put("FRONT", 5000)
    assert desk.drops.snapshot() == {"out_of_order": 1, "repeated_stamp": 1}
    desk.put("FRONT", 1000)
    assert desk.take() == {"FRONT": "FRONT@1000"}


def test_cameras_come_in_the_given_order_with_their_ages() -> None:
    desk = Desk("FRONT", "LEFT", "RIGHT")
    for camera, stamp_ms in (("RIGHT", 3), ("FRONT", 0), ("LEFT", -4)):
        desk.put(camera, stamp_ms)
    desk.now_ms = 10
    taken = desk.box.take(0.02)
    assert taken is not None
    assert list(taken.frames) == ["FRONT", "LEFT", "RIGHT"]
    assert taken.ages_ms() == [10, 14, 7]
    assert (taken.anchor, taken.stamp_ns) == ("FRONT", START)


def test_a_camera_out_of_tolerance_is_reported_stale_and_nothing_is_filled_in() -> None:
    desk = Desk("FRONT", "LEFT")
    desk.put("LEFT", -6)
    desk.put("FRONT", 0)
    assert desk.box.absent() == {"LEFT": "stale"}
    assert desk.take() is None
    assert desk.drops.snapshot() == {"stale:LEFT": 1}


def test_a_camera_that_never_came_or_stopped_is_reported_missing() -> None:
    desk = Desk("FRONT", "LEFT", "RIGHT")
    desk.put("LEFT", 0)
    desk.now_ms = 201
    desk.put("FRONT", 201)
    assert desk.box.absent() == {"LEFT": "missing", "RIGHT": "missing"}
    assert desk.take() is None
    assert desk.drops.snapshot() == {"missing:LEFT": 1, "missing:RIGHT": 1}


def test_a_silent_anchor_is_missing() -> None:
    desk = Desk("FRONT", "LEFT")
    assert desk.box.absent() == {"FRONT": "missing", "LEFT": "missing"}
    desk.put("LEFT", 0)
    assert desk.box.absent() == {"FRONT": "missing"}
    assert desk.take() is None
    assert desk.drops.snapshot() == {}


@pytest.mark.parametrize(("now_ms", "reason"), [(201, "too_old"), (-201, "from_future")])
def test_stamps_far_from_now_are_dropped_at_once(now_ms: float, reason: str) -> None:
    desk = Desk("FRONT", "LEFT", tolerance_ms=20_000)
    desk.put("FRONT", 0)
    desk.now_ms = now_ms
    started_s = time.monotonic()
    assert desk.take(timeout_s=30) is None
    assert time.monotonic() - started_s < 10
    assert desk.drops.snapshot() == {reason: 1}


def test_age_zero_switches_the_check_off() -> None:
    desk = Desk(max_frame_age_ms=0)
    desk.put("FRONT", 0)
    desk.now_ms = 1e9
    assert desk.take() is not None


def test_take_waits_one_tolerance_for_the_other_camera() -> None:
    desk = Desk("FRONT", "LEFT", tolerance_ms=5_000, max_frame_age_ms=0)
    desk.put("FRONT", 0)
    threading.Timer(0.05, desk.put, ("LEFT", 1)).start()
    assert desk.take(timeout_s=10) == {"FRONT": "FRONT@0", "LEFT": "LEFT@1"}


def test_a_fast_anchor_does_not_hide_a_missing_camera() -> None:
    desk = Desk("FRONT", "LEFT", tolerance_ms=40)
    stop = threading.Event()

    def shoot() -> None:
        for number in range(500):
            if stop.wait(0.01):
                return
            desk.put("FRONT", number * 0.1)

    thread = threading.Thread(target=shoot)
    thread.start()
    assert desk.take(timeout_s=2) is None
    assert desk.drops.snapshot().get("missing:LEFT") == 1
    stop.set()
    thread.join()


def test_wake_ends_a_wait() -> None:
    desk = Desk()
    threading.Timer(0.05, desk.box.wake).start()
    started_s = time.monotonic()
    assert desk.take(timeout_s=30) is None
    assert time.monotonic() - started_s < 10


def test_peek_gives_the_newest_complete_set_again_and_again() -> None:
    desk = Desk("FRONT", "LEFT")
    assert desk.box.peek() is None
    desk.put("FRONT", 0)
    assert desk.box.peek() is None
    desk.put("LEFT", 0)
    assert desk.take() is not None
    assert desk.box.peek() is not None
    desk.now_ms = 201
    assert desk.box.peek() is None


def test_an_unknown_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the cameras"):
        FrameMailbox(["A"], anchor="B", tolerance_ms=1, max_frame_age_ms=1, clock_ns=lambda: 0, drops=DropCounts())


CAMERAS = ("FRONT", "LEFT", "RIGHT")
PUTS = st.lists(st.tuples(st.sampled_from(CAMERAS), st.integers(0, 40), st.booleans()), max_size=40)


@given(puts=PUTS)
def test_whatever_arrives_a_set_is_complete_newest_and_within_tolerance(puts: list[tuple[str, int, bool]]) -> None:
    desk = Desk(*CAMERAS, tolerance_ms=4)
    desk.now_ms = 40
    newest: dict[str, int] = {}
    taken_stamps: list[int] = []
    for camera, stamp_ms, then_take in puts:
        desk.put(camera, stamp_ms)
        newest[camera] = max(newest.get(camera, -1), stamp_ms)
        if not then_take:
            continue
        taken = desk.box.take(0.0)
        if taken is None:
            continue
        stamps = {name: (frame.stamp_ns - START) // MS for name, frame in taken.frames.items()}
        assert stamps == newest, "not the newest frames, or not all cameras"
        assert max(abs(stamp - stamps["FRONT"]) for stamp in stamps.values()) <= 4
        taken_stamps.append(stamps["FRONT"])
    assert taken_stamps == sorted(set(taken_stamps)), "an anchor frame was taken twice"


@given(puts=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=40))
def test_every_frame_is_either_taken_or_counted_under_one_reason(puts: list[tuple[int, bool]]) -> None:
    desk = Desk(tolerance_ms=0)
    desk.now_ms = 40
    taken = sum(desk.box.take(0.0) is not None for stamp_ms, then_take in puts if (desk.put("FRONT", stamp_ms), then_take)[1])
    taken += desk.box.take(0.0) is not None
    assert taken + sum(desk.drops.snapshot().values()) == len(puts)
