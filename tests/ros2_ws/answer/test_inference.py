"""The inference thread: newest first, one at a time, survives failures, stops within its bound. No ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from drivekd_ros.answer.inference import Worker
from drivekd_ros.input.drops import DropCounts
from drivekd_ros.input.mailbox import FrameMailbox, FrameSet

from drivekd.errors import DataError, RunnerError


class Bench:
    """A worker on one camera; `seen` are the messages that were inferred."""

    def __init__(self, act: Callable[[str], None] = lambda message: None) -> None:
        self.drops = DropCounts()
        self.errors: list[str] = []
        self.seen: list[str] = []
        self.act = act
        self.stamp_ns = 0
        self.box: FrameMailbox[str] = FrameMailbox(
            ["CAM"], anchor="CAM", tolerance_ms=0, max_frame_age_ms=0, clock_ns=lambda: 0, drops=self.drops
        )
        self.worker = Worker(self.box, self.infer, drops=self.drops, on_error=self.errors.append)

    def infer(self, frame_set: FrameSet[str]) -> None:
        message = frame_set.frames["CAM"].message
        self.seen.append(message)
        self.act(message)

    def put(self, message: str) -> None:
        self.stamp_ns += 1
        self.box.put("CAM", self.stamp_ns, message)

    def until(self, done: Callable[[], bool]) -> None:
        due_s = time.monotonic() + 10
        while not done():
            assert time.monotonic() < due_s, f"timeout; seen {self.seen}, errors {self.errors}"
            time.sleep(0.002)


@contextmanager
def running(bench: Bench) -> Iterator[Bench]:
    bench.worker.start()
    try:
        yield bench
    finally:
        bench.worker.stop(5)


def assert_set(event: threading.Event) -> None:
    assert event.wait(20)


def test_frames_that_come_while_busy_are_reduced_to_the_newest() -> None:
    go = threading.Event()
    with running(Bench(lambda message: assert_set(go))) as bench:
        bench.put("first")
        bench.until(lambda: bench.seen == ["first"])
        for message in ("b", "c", "last"):
            bench.put(message)
        go.set()
        bench.until(lambda: len(bench.seen) == 2)
    assert bench.seen == ["first", "last"]
    assert bench.drops.snapshot() == {"superseded": 2}


def test_never_two_inferences_at_once() -> None:
    inside, worst = [], []

    def act(message: str) -> None:
        inside.append(message)
        worst.append(len(inside))
        time.sleep(0.002)
        inside.remove(message)

    with running(Bench(act)) as bench:
        for number in range(20):
            bench.put(str(number))
            bench.worker.submit(lambda number=number: act(f"job {number}"))
        bench.until(lambda: len(worst) >= 21)
    assert set(worst) == {1}


@pytest.mark.parametrize(
    ("error", "reason"), [(DataError("bad picture"), "malformed"), (RunnerError("engine"), "inference_failed")]
)
def test_a_failure_is_counted_told_and_survived(error: Exception, reason: str) -> None:
    def act(message: str) -> None:
        if message == "bad":
            raise error

    with running(Bench(act)) as bench:
        bench.put("bad")
        bench.until(lambda: bench.drops.snapshot() == {reason: 1})
        bench.put("good")
        bench.until(lambda: bench.seen == ["bad", "good"])
        assert bench.worker.alive
    assert bench.errors == [str(error)]


def test_an_unexpected_error_ends_the_thread_and_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def act(message: str) -> None:
        raise ZeroDivisionError

    with running(Bench(act)) as bench:
        bench.put("x")
        bench.until(lambda: not bench.worker.alive)
    assert told


def test_stop_leaves_an_inference_at_its_next_text() -> None:
    bench = Bench()

    def act(message: str) -> None:
        while True:
            time.sleep(0.01)
            bench.worker.check_stop()

    bench.act = act
    bench.worker.start()
    bench.put("endless")
    bench.until(lambda: bench.seen == ["endless"])
    assert bench.worker.busy_s() > 0
    assert bench.worker.stop(5)
    assert bench.worker.busy_s() == 0


def test_stop_does_not_wait_for_a_hung_inference() -> None:
    free = threading.Event()
    bench = Bench(lambda message: assert_set(free))
    bench.worker.start()
    bench.put("hung")
    bench.until(lambda: bench.seen == ["hung"])
    started_s = time.monotonic()
    assert not bench.worker.stop(0.1)
    assert time.monotonic() - started_s < 5
    free.set()
    bench.until(lambda: not bench.worker.alive)


def test_an_idle_worker_stops_at_once_and_one_that_never_started_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd_ros.answer.inference.TAKE_TIMEOUT_S", 60.0)
    bench = Bench()
    assert bench.worker.stop(0)
    bench = Bench()
    bench.worker.start()
    time.sleep(0.05)
    assert bench.worker.stop(5)


def test_questions_come_before_frames() -> None:
    order: list[str] = []
    go = threading.Event()
    with running(Bench(lambda message: order.append(message))) as bench:
        bench.worker.submit(lambda: order.append("gate") if go.wait(10) else None)
        bench.put("frame")
        bench.worker.submit(lambda: order.append("question"))
        go.set()
        bench.until(lambda: len(order) == 3)
    assert order == ["gate", "question", "frame"]
