"""The best rung that works answers; when none does, that is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_faults import ENGINE_FAULTS, open_faulty, spoil

from drivekd.errors import BundleError, DataError, RunnerError, UsageError
from drivekd.images import RGBImage
from drivekd.runtime import Answer, Answering, Ask, Session, load_bundle
from drivekd.runtime.meters.health import Health, HealthSnapshot
from drivekd.runtime.resilience.ladder import Ladder, Rung
from drivekd.runtime.resilience.worker import WorkerSession, WorkerSettings

pytestmark = pytest.mark.numerics

Images = dict[str, RGBImage]
CAMERAS = ("CAM_FRONT", "CAM_BACK")


def frame(seed: int) -> Images:
    noise = np.random.default_rng(seed).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    return dict(zip(CAMERAS, noise, strict=True))


def texts(answers: dict[str, Answer]) -> dict[str, str]:
    return {name: answer.text for name, answer in answers.items()}


class Clock:
    """Seconds that a test turns on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def trigger(tmp_path: Path) -> Path:
    return tmp_path / "fault"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ladder(bundle: Path, trigger: Path, clock: Clock) -> Iterator[Ladder]:
    """Two engines on one bundle; the upper one fails when the trigger says so. Told apart by their backends' names."""

    def upper() -> Session:
        session = open_faulty(bundle, trigger=trigger, threads=1, gate=False)
        session.backend = "upper"
        return session

    def lower() -> Session:
        return load_bundle(bundle, threads=1, gate=False)

    rungs = [Rung("upper", upper), Rung("lower", lower, cameras=("CAM_FRONT",), max_new_tokens=3)]
    with Ladder(rungs, cool_down_s=10.0, clock=clock) as made:
        yield made


@pytest.mark.parametrize("fault", ENGINE_FAULTS)
def test_the_lower_rung_answers_the_same_frame(ladder: Ladder, session: Session, trigger: Path, clock: Clock, fault: str) -> None:
    assert texts(ladder.answer(frame(0))) == texts(session.answer(frame(0)))
    assert (ladder.health().state, ladder.backend) == ("ready", "upper")
    trigger.write_text(fault)
    expected = session.answer({"CAM_FRONT": frame(1)["CAM_FRONT"]}, max_new_tokens=3)
    answers = ladder.answer(frame(1))
    assert texts(answers) == texts(expected), "one camera, three tokens"
    assert {answer.backend for answer in answers.values()} == {"ort-cpu"} == {ladder.backend}
    health = ladder.health()
    assert (health.state, health.fallbacks, health.failed, health.backend) == ("degraded", 1, 0, "ort-cpu")
    assert health.last_error.startswith("upper: ")
    assert {answer.backend for answer in ladder.answer(frame(1)).values()} == {"ort-cpu"}, "the upper rung cools down"
    clock.now_s = 10.0
    answers = ladder.answer(frame(1))
    assert texts(answers) == texts(session.answer(frame(1)))
    assert {answer.backend for answer in answers.values()} == {"upper"} == {ladder.backend}
    assert (ladder.health().state, ladder.health().fallbacks) == ("ready", 1)


def test_the_caller_s_token_limit_stays_a_limit(ladder: Ladder, trigger: Path) -> None:
    trigger.write_text("raises")
    assert max(answer.tokens for answer in ladder.answer(frame(2)).values()) == 3
    assert {answer.tokens for answer in ladder.answer(frame(2), max_new_tokens=2).values()} == {2}
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        ladder.answer(frame(2), max_new_tokens=0)


def test_callers_mistakes_are_no_reason_to_fall(ladder: Ladder) -> None:
    with pytest.raises(UsageError):
        ladder.answer(frame(0), capabilities=["parking"])
    with pytest.raises(DataError):
        ladder.answer({"CAM_FRONT": np.zeros((4, 4), np.uint8)})
    with pytest.raises(UsageError, match="no images"):
        ladder.answer({})
    assert (ladder.health().state, ladder.health().fallbacks, ladder.health().failed) == ("ready", 0, 0)


def test_only_one_rung_s_text_is_streamed(ladder: Ladder, trigger: Path) -> None:
    pieces: list[str] = []

    def grow(capability: str, piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:  # the upper engine fails after it has begun to speak
            raise RunnerError("injected in the middle")

    answers = ladder.answer(frame(3), on_text=grow)
    assert {answer.backend for answer in answers.values()} == {"ort-cpu"}
    assert len(pieces) == 2, "the lower rung's text would go on behind the upper one's"
    pieces = [""] * 2
    trigger.write_text("raises")
    ladder.answer(frame(4), on_text=grow)
    assert len(pieces) > 2, "a rung that failed without a word lets the next one speak"


def test_a_worker_that_dies_is_stood_in_for_and_comes_back(bundle: Path, session: Session, trigger: Path) -> None:
    """Kill and hang, in real processes: the next rung takes over at once, the worker comes back by itself."""

    def worker() -> WorkerSession:
        settings = WorkerSettings(first_backoff_s=0.01, min_hang_ms=1500.0)
        return WorkerSession(bundle, settings=settings, open_session=open_faulty, trigger=trigger, threads=1, gate=False)

    rungs = [Rung("worker", worker), Rung("here", lambda: load_bundle(bundle, threads=1, gate=False), max_new_tokens=2)]
    with Ladder(rungs, cool_down_s=0.0) as ladder:
        trigger.write_text("kill")
        answers = ladder.answer(frame(0), deadline_ms=60_000.0)
        assert texts(answers) == texts(session.answer(frame(0), max_new_tokens=2))
        assert ladder.health().state == "degraded"
        upper = ladder._steps[0].session
        assert isinstance(upper, WorkerSession)
        assert upper.wait_ready(60.0)
        assert texts(ladder.answer(frame(1))) == texts(session.answer(frame(1)))
        trigger.write_text("hang")
        with pytest.raises(RunnerError, match=r"no output for this frame: worker: .*no answer within.*no time is left for here"):
            ladder.answer(frame(2), deadline_ms=20.0)
        assert ladder.health().state == "no_output"
        answers = ladder.answer(frame(2), deadline_ms=60_000.0)  # while the worker starts again
        assert texts(answers) == texts(session.answer(frame(2), max_new_tokens=2))
        health = ladder.health()
        assert (health.state, health.restarts, health.failed, health.fallbacks) == ("degraded", 2, 1, 2)


def test_a_rung_that_is_not_needed_is_not_opened(bundle: Path, trigger: Path) -> None:
    opened = []

    def lower() -> Session:
        opened.append("lower")
        return load_bundle(bundle, threads=1, gate=False)

    rungs = [
        Rung("upper", lambda: open_faulty(bundle, trigger=trigger, threads=1, gate=False)),
        Rung("lower", lower, standby=False),
    ]
    with Ladder(rungs) as ladder:
        ladder.answer(frame(0), max_new_tokens=1)
        assert opened == []
        trigger.write_text("raises")
        ladder.answer(frame(0), max_new_tokens=1)
        ladder.answer(frame(1), max_new_tokens=1)
        assert opened == ["lower"]
        spoil(ladder._steps[1].session, trigger)  # type: ignore[arg-type]
        trigger.write_text("raises")
        with pytest.raises(RunnerError, match="lower: injected"):
            ladder.answer(frame(2))
        assert ladder.health().state == "no_output"
        ladder.answer(frame(2), max_new_tokens=1)
        assert ladder.health().state == "degraded"


def test_a_rung_that_cannot_be_opened_is_left_out(bundle: Path, tmp_path: Path) -> None:
    broken = Rung("broken", lambda: load_bundle(tmp_path / "nothing"))
    with Ladder([broken, Rung("cpu", lambda: load_bundle(bundle, threads=1, gate=False))]) as ladder:
        assert ladder.health().state == "degraded"
        assert ladder.answer(frame(0), max_new_tokens=1)
    with pytest.raises(BundleError, match="nothing"):
        Ladder([broken])
    with pytest.raises(UsageError, match="stands by"):
        Ladder([])
    with pytest.raises(UsageError, match="stands by"):
        Ladder([Rung("cpu", lambda: load_bundle(bundle), standby=False)])
    with pytest.raises(RunnerError, match="closed"):
        ladder.answer(frame(0))


@dataclass
class Script(Answering):
    """A session that does what its script says: the ladder's own logic, without an engine."""

    name: str
    works: Callable[[], bool]
    capabilities: tuple[str, ...] = ("planning",)
    cameras: tuple[str, ...] = CAMERAS
    variables: dict[str, Any] = field(default_factory=dict)
    manifest: Any = None
    bundle_digest: str = ""
    timings_ms: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        return self.name

    def answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        if not self.works():
            raise RunnerError(f"{self.name} is broken")
        return {"planning": Answer("planning", "Brake.", backend=self.name)}

    def health(self) -> HealthSnapshot:
        return Health(self.name).snapshot()

    def close(self) -> None:
        pass


@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=3, max_size=3), st.floats(0.1, 20.0)), max_size=40))
@settings(deadline=None)
def test_the_best_rung_that_is_due_and_works_answers(frames: list[tuple[list[bool], float]]) -> None:
    """Against a plain model of the rules: cool-downs of 1, 2, 4 ... seconds, none for the lowest rung."""
    clock, works = Clock(), [True, True, True]
    rungs = [Rung(str(i), lambda i=i: Script(str(i), lambda: works[i])) for i in range(3)]  # type: ignore[misc]
    ladder = Ladder(rungs, cool_down_s=1.0, clock=clock)
    due_s, failures = [0.0] * 3, [0] * 3
    for works_now, passed_s in frames:
        works[:] = works_now
        clock.now_s += passed_s
        expected = None
        for i in range(3):
            if clock.now_s < due_s[i] and i < 2:
                continue
            if works[i]:
                expected, failures[i] = str(i), 0
                break
            failures[i] += 1
            due_s[i] = clock.now_s + min(2.0 ** (failures[i] - 1), 300.0)
        if expected is None:
            with pytest.raises(RunnerError, match="no output"):
                ladder.answer(frame(0))
            assert ladder.health().state == "no_output"
        else:
            assert ladder.answer(frame(0))["planning"].backend == expected == ladder.backend == ladder.health().backend
            assert ladder.health().state == ("ready" if expected == "0" else "degraded")
    health = ladder.health()
    assert health.frames == len(frames) == health.answers + health.failed


def test_the_next_rung_gets_the_time_that_is_left() -> None:
    class Slow(Script):
        def answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
            given_ms.append(ask.deadline_ms)
            time.sleep(0.02)
            return super().answer_ask(images, ask)

    given_ms: list[Any] = []
    rungs = [Rung("a", lambda: Slow("a", lambda: False)), Rung("b", lambda: Slow("b", lambda: True))]
    with Ladder(rungs) as ladder:
        ladder.answer(frame(0), deadline_ms=60_000.0)
        assert ladder.timings_ms["total"] >= 40.0
    assert given_ms[1] <= given_ms[0] - 20.0 <= 60_000.0 - 20.0


def test_rungs_answer_the_same_capabilities() -> None:
    closed = []

    class Closing(Script):
        def close(self) -> None:
            closed.append(self.name)

    rungs = [
        Rung("a", lambda: Closing("a", lambda: True)),
        Rung("b", lambda: Closing("b", lambda: True, capabilities=("parking",))),
    ]
    with pytest.raises(UsageError, match="same capabilities"):
        Ladder(rungs)
    assert closed == ["a", "b"]
