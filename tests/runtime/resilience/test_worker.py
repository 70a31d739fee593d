"""A worker answers as a session does. Whatever befalls its child, the frame ends with a clear error, the next is answered."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from places import TESTS
from small_bundle import write_manifest
from worker_faults import (
    CHATTER,
    DEATHS,
    ENGINE_FAULTS,
    HANGS,
    open_faulty,
    open_never,
    open_one_after_another,
    open_out_of_memory,
    open_without_torch,
)

import drivekd.runtime.resilience.worker as worker_module
from drivekd.errors import BundleError, DataError, RunnerError, UsageError
from drivekd.images import RGBImage
from drivekd.runtime import Answer, Session, read_bundle
from drivekd.runtime.answers.ask import Sampling
from drivekd.runtime.meters.health import memory_mb
from drivekd.runtime.resilience.child import Child
from drivekd.runtime.resilience.server import Start
from drivekd.runtime.resilience.shared_images import SharedImageReader
from drivekd.runtime.resilience.worker import WorkerSession, WorkerSettings

pytestmark = pytest.mark.numerics

Images = dict[str, RGBImage]
START_S = 60.0  # a child needs 2 s here; a busy machine more
QUICK = WorkerSettings(first_backoff_s=0.01, min_hang_ms=1500.0)  # min: a tiny frame of 20 ms on a busy machine


@pytest.fixture(scope="module")
def trigger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "fault"


@pytest.fixture(scope="module")
def shared_worker(bundle: Path, trigger: Path) -> Iterator[WorkerSession]:
    with WorkerSession(bundle, settings=QUICK, open_session=open_faulty, trigger=trigger, threads=1, gate=False) as worker:
        yield worker


@pytest.fixture
def worker(shared_worker: WorkerSession, trigger: Path) -> WorkerSession:
    trigger.unlink(missing_ok=True)
    assert shared_worker.wait_ready(START_S)
    return shared_worker


def frame(seed: int, size: tuple[int, int] = (56, 56)) -> Images:
    """Of the tile's size: nothing is copied on the way to the engine."""
    noise = np.random.default_rng(seed).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    return dict(zip(("CAM_FRONT", "CAM_BACK"), noise, strict=True))


def said(answers: dict[str, Answer]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {name: (a.text, a.structured, a.finish_reason, a.tokens, a.mean_logprob, a.backend) for name, a in answers.items()}


def test_a_worker_answers_as_a_session_does(worker: WorkerSession, session: Session) -> None:
    for name in ("capabilities", "cameras", "variables", "bundle_digest", "backend", "dialect", "manifest"):
        assert getattr(worker, name) == getattr(session, name)
    for seed, size in enumerate([(56, 56), (56, 56), (90, 120), (20, 30)]):
        images = frame(seed, size)
        assert said(worker.answer(images)) == said(session.answer(images))
    free = worker.answer(images, question="What is ahead?", max_new_tokens=3)
    assert said(free) == said(session.answer(images, question="What is ahead?", max_new_tokens=3))
    assert worker.timings_ms.keys() == session.timings_ms.keys()
    assert worker.counts == session.counts
    health = worker.health()
    assert health.state == "ready"
    assert health.frames >= 5
    own_mb = memory_mb().rss_mb
    assert health.rss_mb is not None
    assert own_mb is not None
    assert 20 < health.rss_mb < own_mb / 2, "the child's, which has no torch"


def test_any_collections_and_an_endless_deadline_travel(worker: WorkerSession) -> None:
    options: dict[str, Any] = {"capabilities": {"planning": 1}.keys(), "variables": MappingProxyType({}), "max_new_tokens": 1}
    before = worker.health().restarts
    for deadline_ms in (float("inf"), 1e13):
        assert list(worker.answer(frame(0), deadline_ms=deadline_ms, **options)) == ["planning"]
    assert worker.health().restarts == before


def test_structured_and_sampled_answers_come_through(worker: WorkerSession, session: Session) -> None:
    options: dict[str, Any] = {"structured": True, "sampling": Sampling(0.8, 0.9, 7), "max_new_tokens": 12}
    assert said(worker.answer(frame(1), **options)) == said(session.answer(frame(1), **options))


def test_streamed_pieces_concatenate_to_the_text(worker: WorkerSession) -> None:
    pieces = dict.fromkeys(worker.capabilities, "")

    def grow(capability: str, piece: str) -> None:
        pieces[capability] += piece

    answers = worker.answer(frame(2), on_text=grow, max_new_tokens=8)
    assert pieces == {name: answer.text for name, answer in answers.items()}
    assert any(pieces.values())


def test_callers_mistakes_come_back_as_they_are(worker: WorkerSession) -> None:
    failed = worker.health().failed
    with pytest.raises(UsageError, match="capability 'parking' is unknown"):
        worker.answer(frame(0), capabilities=["parking"])
    with pytest.raises(UsageError, match="no images"):
        worker.answer({})
    with pytest.raises(DataError, match="CAM_FRONT"):
        worker.answer({"CAM_FRONT": np.zeros((4, 4), np.uint8)})
    assert worker.health().failed == failed
    assert worker.health().state == "ready"
    with pytest.raises(TypeError, match="thread"):
        WorkerSession(Path("bundle"), thread=1)


def test_a_deadline_counts_from_the_call(worker: WorkerSession) -> None:
    answers = worker.answer(frame(3), deadline_ms=0.0)
    assert {answer.finish_reason for answer in answers.values()} == {"deadline"}
    far = worker.answer(frame(3), deadline_ms=60_000.0, max_new_tokens=2)
    assert "deadline" not in {answer.finish_reason for answer in far.values()}


def test_a_frame_can_be_cancelled(worker: WorkerSession, trigger: Path) -> None:
    trigger.write_text("slow")
    answers = worker.answer(frame(4), cancelled=lambda: not trigger.exists())  # as soon as the engine is at work
    assert {answer.finish_reason for answer in answers.values()} == {"cancelled"}
    assert "cancelled" not in {answer.finish_reason for answer in worker.answer(frame(4), max_new_tokens=2).values()}


def test_a_caller_may_leave_in_the_middle(worker: WorkerSession, session: Session, trigger: Path) -> None:
    """The next frame waits until the child has let go of the images, and is answered as if nothing had been."""

    def leave() -> bool:
        if not trigger.exists():
            raise KeyboardInterrupt
        return False

    trigger.write_text("slow")
    child = worker._child.pid
    with pytest.raises(KeyboardInterrupt):
        worker.answer(frame(5), cancelled=leave)
    assert SharedImageReader(worker._images.descriptor).cancelled(worker._frame), "the child was not told to stop"
    assert said(worker.answer(frame(6), max_new_tokens=4)) == said(session.answer(frame(6), max_new_tokens=4))
    assert said(worker.answer(frame(5), max_new_tokens=4)) == said(session.answer(frame(5), max_new_tokens=4))
    assert worker._child.pid == child


@pytest.mark.parametrize("fault", ENGINE_FAULTS)
def test_an_engine_that_fails_costs_its_frame(worker: WorkerSession, session: Session, trigger: Path, fault: str) -> None:
    child, failed = worker._child.pid, worker.health().failed
    images = frame(20 + ENGINE_FAULTS.index(fault))  # which no engine has seen
    trigger.write_text(fault)
    with pytest.raises(RunnerError, match=r"injected|not finite|out of memory"):
        worker.answer(images)
    assert worker.health().state == "failing"
    # the very same images: nothing of what the engine gave for them may have been kept
    assert said(worker.answer(images)) == said(session.answer(images))
    health = worker.health()
    assert (health.state, health.failed - failed) == ("ready", 1)
    assert worker._child.pid == child, "no new child was needed"


def test_an_engine_that_fails_and_fails_is_replaced(worker: WorkerSession, trigger: Path) -> None:
    child = worker._child.pid
    for seed in range(30, 34):
        trigger.write_text("raises")
        with pytest.raises(RunnerError, match=r"^injected"):
            worker.answer(frame(seed))
        if seed == 31:  # four failures, but never three in a row
            worker.answer(frame(seed), max_new_tokens=1)
    with pytest.raises(UsageError):
        worker.answer({})  # no failure of the engine
    trigger.write_text("raises")
    with pytest.raises(RunnerError, match="refused 3 frames in a row, the last one with: injected"):
        worker.answer(frame(35))
    assert worker.health().state == "starting"
    assert worker.wait_ready(START_S)
    assert worker._child.pid != child
    assert worker.answer(frame(35), max_new_tokens=1)


@pytest.mark.parametrize("fault", [*DEATHS, *HANGS])
def test_a_child_that_dies_or_hangs_is_replaced(worker: WorkerSession, session: Session, trigger: Path, fault: str) -> None:
    worker.answer(frame(8))
    child, before = worker._child.pid, worker.health()
    trigger.write_text(fault)
    expected = {"kill": "signal 9", "segv": "signal 11", "exit": "exit status 3"}.get(fault, "no answer within 1500 ms")
    with pytest.raises(RunnerError, match=expected):
        worker.answer(frame(9), deadline_ms=20.0)
    assert worker.health().state == "starting"
    with pytest.raises(RunnerError, match=f"is starting.*{expected}"):
        worker.answer(frame(9), deadline_ms=20.0)  # at once: the caller may have another backend
    assert worker.wait_ready(START_S)
    assert not Path(f"/proc/{child}").exists(), "no child is left behind"
    assert said(worker.answer(frame(10))) == said(session.answer(frame(10)))  # of frame 10, not of frame 9
    after = worker.health()
    assert (after.state, after.restarts - before.restarts, after.failed - before.failed) == ("ready", 1, 2)
    assert expected in after.last_error
    assert worker._backoff.failures == 0, "it had an answer since"


def test_a_child_that_dies_while_idle_is_replaced(worker: WorkerSession) -> None:
    os.kill(worker._child.pid, signal.SIGKILL)
    with pytest.raises(RunnerError, match="signal 9"):
        worker.answer(frame(11))
    assert worker.wait_ready(START_S)
    assert worker.answer(frame(11))


def test_restarts_leave_nothing_behind(worker: WorkerSession) -> None:
    """After the restarts above: as many descriptors as one worker takes, and one child."""
    descriptors = len(os.listdir("/proc/self/fd"))
    os.kill(worker._child.pid, signal.SIGKILL)
    with pytest.raises(RunnerError):
        worker.answer(frame(12))
    assert worker.wait_ready(START_S)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_each_failure_in_a_row_doubles_the_wait(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delays_s = []

    class Recorded(Child):
        def __init__(self, start: Start, images: int) -> None:
            delays_s.append(start.delay_s)
            super().__init__(start, images)

    monkeypatch.setattr(worker_module, "Child", Recorded)
    settings = WorkerSettings(first_backoff_s=100.0, longest_backoff_s=500.0)
    with WorkerSession(bundle, settings=settings, wait=False) as worker:
        with pytest.raises(RunnerError, match="still starting"):
            worker.capabilities  # noqa: B018
        for restarts in range(1, 5):
            os.kill(worker._child.pid, signal.SIGKILL)
            wait_until(lambda restarts=restarts: not worker.wait_ready(0.0) and worker.health().restarts == restarts)
            with pytest.raises(RunnerError, match=r"is starting \(the worker did not start.*signal 9"):
                worker.answer(frame(0))
    assert delays_s == [0.0, 100.0, 200.0, 400.0, 500.0]


def test_what_keeps_the_first_child_from_starting_is_raised(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "fault").write_text("raises")
    with pytest.raises(RunnerError, match="injected"):  # before any frame: the child warms its engines up
        WorkerSession(bundle, open_session=open_faulty, trigger=tmp_path / "fault", gate=False)
    with pytest.raises(BundleError, match="not a bundle directory"):
        WorkerSession(tmp_path / "nothing")
    with pytest.raises(RunnerError, match="ran out of memory"):
        WorkerSession(bundle, open_session=open_out_of_memory)
    with pytest.raises(RunnerError, match=r"not loaded within 1 s \(start_timeout_s\)"):
        WorkerSession(bundle, open_session=open_never, settings=WorkerSettings(start_timeout_s=1.0))


@pytest.fixture
def other_bundle(bundle: Path, tmp_path: Path) -> Path:
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    write_manifest(other, dataclasses.replace(read_bundle(bundle).manifest, note="another").to_bytes())
    return other


def test_another_bundle_in_its_place_is_not_taken(bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    turn = tmp_path / "turn"
    turn.write_text(str(bundle))
    with WorkerSession(bundle, settings=QUICK, open_session=open_one_after_another, turn=turn, gate=False) as worker:
        digest = worker.bundle_digest
        turn.write_text(str(other_bundle))
        os.kill(worker._child.pid, signal.SIGKILL)
        with pytest.raises(RunnerError):
            worker.answer(frame(0))
        wait_until(lambda: not worker.wait_ready(0.1) and f"was {digest}" in worker.health().last_error)
        assert worker.bundle_digest == digest


def test_the_child_imports_no_training_library(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "torch" in sys.modules, "the parent has it"
    with WorkerSession(bundle, open_session=open_without_torch, gate=False, threads=1) as worker:
        assert worker.answer(frame(0), max_new_tokens=1)
    written = capfd.readouterr()
    assert (CHATTER in written.out, CHATTER in written.err) == (False, True), "stdout is the caller's result"
    with pytest.raises(RunnerError, match="the worker is closed"):
        worker.answer(frame(0))
    worker.close()


def test_a_child_ends_with_its_parent_even_while_it_hangs(bundle: Path, tmp_path: Path) -> None:
    trigger, pid_file = tmp_path / "fault", tmp_path / "pid"
    code = f"""
import sys; sys.path[:0] = {[str(TESTS / "cases")]!r}
from pathlib import Path
import numpy as np
from worker_faults import open_faulty
from drivekd.runtime.resilience.shared_images import SharedImageReader
from drivekd.runtime.resilience.worker import WorkerSession
worker = WorkerSession(Path({str(bundle)!r}), open_session=open_faulty, trigger=Path({str(trigger)!r}), gate=False)
Path({str(trigger)!r}).write_text("hang")
Path({str(pid_file)!r}).write_text(str(worker._child.pid))
worker.answer({{"CAM_FRONT": np.zeros((56, 56, 3), np.uint8)}})
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: pid_file.exists() and pid_file.read_text() and not trigger.exists())
    parent.kill()
    parent.wait()
    child = Path(f"/proc/{pid_file.read_text()}/stat")
    wait_until(lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < until_s, "it did not come"
        time.sleep(0.02)
