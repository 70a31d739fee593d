"""A ladder of sessions: when an engine fails, the next one answers the same frame, if its deadline allows.

For example TensorRT, then ONNX Runtime on the CPU with fewer cameras and shorter answers, then nothing:

    ladder = Ladder([
        Rung("trt", lambda: WorkerSession(bundle, backend="trt")),
        Rung("cpu", lambda: WorkerSession(bundle, backend="ort-cpu"), cameras=("CAM_FRONT",), max_new_tokens=32),
    ])

A rung that failed is tried again after a cool-down, which doubles with each failure in a row; the lowest one at every frame.
Below it there is no output: RunnerError for the frame, and health() says so until a frame is answered.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from drivekd.errors import BundleError, DrivekdError, RunnerError, UsageError
from drivekd.images import RGBImage
from drivekd.runtime.answers.answer import Answer
from drivekd.runtime.answers.ask import Answering, Ask, OnText
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.answers.turn import Turn
from drivekd.runtime.meters.health import Health, HealthSnapshot, Memory
from drivekd.runtime.session.session import AnswerSession

from .backoff import FIRST_COOL_DOWN_S, LONGEST_COOL_DOWN_S, BackOff


@dataclass(frozen=True)
class Rung:
    """One way to answer. name: for messages. open: makes its session.

    cameras: those it looks at, None = all. max_new_tokens: the most it generates per capability. standby: opened with the
    ladder; False = when it is first needed, which costs no memory until then. Such a one is best a WorkerSession(wait=False): a
    frame then falls through it, instead of waiting, while it loads.
    """

    name: str
    open: Callable[[], AnswerSession]
    cameras: tuple[str, ...] | None = None
    max_new_tokens: int | None = None
    standby: bool = True


class Ladder(Answering):
    """A Session's face on several of them, best first. One thread at a time; health() from any.

    capabilities, cameras, variables, manifest: of the best rung that stands by. backend, bundle_digest, timings_ms, counts: of
    the rung that answered last.

    A bundle without TensorRT engines falls to the next rung, whose answers are one token long:

        >>> from drivekd.runtime import Ladder, Rung, load_bundle
        >>> rungs = [
        ...     Rung("trt", lambda: load_bundle(bundle, backend="trt")),
        ...     Rung("cpu", lambda: load_bundle(bundle, backend="ort-cpu"), cameras=("CAM_FRONT",), max_new_tokens=1),
        ... ]
        >>> with Ladder(rungs) as ladder:
        ...     answer = ladder.answer({"CAM_FRONT": image}, capabilities=["planning"])["planning"]
        ...     answer.backend, answer.tokens <= 1, ladder.health().state
        ('ort-cpu', True, 'degraded')
    """

    def __init__(
        self, rungs: Sequence[Rung], *, cool_down_s: float = FIRST_COOL_DOWN_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open the rungs that stand by. Each verifies the bundle itself, so one that does not pass is only left out.

        cool_down_s: of a rung that failed. clock: seconds.
        Raises UsageError: no rungs, or they answer different capabilities; the best rung's error when none can be opened.
        """
        self.timings_ms: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._steps = [_Step(rung, BackOff(cool_down_s, LONGEST_COOL_DOWN_S), clock) for rung in rungs]
        self._no_output = False
        self._closed = False
        self._turn = Turn()
        self._at, session = self._open_standby()
        self.capabilities = session.capabilities
        self.cameras = session.cameras
        self.variables = session.variables
        self.manifest = session.manifest
        self.bundle_digest = session.bundle_digest
        self.backend = session.backend
        self._health = Health(self.backend)

    def __enter__(self) -> Ladder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every rung; a second call does nothing."""
        self._closed = True
        for step in self._steps:
            step.close()

    def health(self) -> HealthSnapshot:
        """Of all frames, whichever rung they went to. memory: of the rung in use. restarts: of all rungs."""
        rungs = [step.session.health() if step.session else None for step in self._steps]
        used = rungs[self._at]
        memory = Memory(used.rss_mb, used.peak_rss_mb) if used else None
        now = self._health.snapshot(state="degraded" if self._at else None, memory=memory)
        restarts = sum(rung.restarts for rung in rungs if rung)
        return replace(now, state="no_output" if self._no_output else now.state, restarts=restarts)

    def answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        """As Session.answer_ask; Answer.backend says which engine it was.

        on_text: of the rung that speaks first. When it fails in the middle, the returned answers are another rung's.
        Raises UsageError and DataError as that does; RunnerError: no rung has answered in time.
        """
        with self._turn:
            return self._answer_ask(images, ask)

    def _answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        if self._closed:
            raise RunnerError("the ladder is closed; make another")
        clock, stream = Deadline(ask.deadline_ms), _Stream(ask.on_text)
        errors: list[str] = []
        for index, step in enumerate(self._steps):
            if not step.due() and index < len(self._steps) - 1:
                continue
            if errors and clock.interruption():
                errors.append(f"no time is left for {step.rung.name}")
                break
            try:
                answers = step.answer(images, replace(ask, on_text=stream.of(index), deadline_ms=clock.left_ms()))
            except (RunnerError, BundleError, MemoryError) as error:
                errors.append(step.failed(error))
            else:
                return self._answered(index, answers, errors, clock)
        raise self._unanswered(errors)

    def _answered(self, index: int, answers: dict[str, Answer], errors: list[str], clock: Deadline) -> dict[str, Answer]:
        session = self._steps[index].session
        assert session is not None
        fell = bool(errors) or index > self._at
        self._at, self._no_output = index, False
        self.backend, self.bundle_digest = session.backend, session.bundle_digest
        self.timings_ms, self.counts = session.timings_ms | {"total": clock.elapsed_ms()}, session.counts
        self._health.answered(answers.values(), self.timings_ms)
        self._health.uses(self.backend)
        if fell:
            self._health.fell_back("; ".join(errors))
        return answers

    def _unanswered(self, errors: list[str]) -> RunnerError:
        self.timings_ms, self.counts = {}, {}
        self._no_output = True
        error = RunnerError("no output for this frame: " + "; ".join(errors))
        self._health.failed(str(error))
        return error

    def _open_standby(self) -> tuple[int, AnswerSession]:
        """Open the rungs that stand by; returns the best one that is ready and its index."""
        opened: list[tuple[int, AnswerSession]] = []
        errors: list[DrivekdError] = []
        for index, step in enumerate(self._steps):
            if step.rung.standby:
                try:
                    session = step.open()
                    capabilities = session.capabilities  # RunnerError: a worker that is still starting
                except (RunnerError, BundleError) as error:
                    step.failed(error)
                    errors.append(error)
                else:
                    opened.append((index, session))
                    self._check_alike(capabilities, opened[0][1].capabilities)
        if opened:
            return opened[0]
        self.close()
        raise errors[0] if errors else UsageError("a ladder needs a rung that stands by")

    def _check_alike(self, found: tuple[str, ...], expected: tuple[str, ...]) -> None:
        if found != expected:
            self.close()
            raise UsageError(f"the rungs of a ladder answer the same capabilities; found {expected} and {found}")


class _Step:
    """A rung at work. session: None until it is opened."""

    def __init__(self, rung: Rung, backoff: BackOff, clock: Callable[[], float]) -> None:
        self.rung = rung
        self.session: AnswerSession | None = None
        self._backoff = backoff
        self._clock = clock
        self._again_s = -math.inf

    def due(self) -> bool:
        """Whether it has cooled down."""
        return self._clock() >= self._again_s

    def open(self) -> AnswerSession:
        """Raises RunnerError, BundleError."""
        if self.session is None:
            self.session = self.rung.open()
        return self.session

    def answer(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        """Raises as Session.answer_ask does, and as `open`."""
        session, rung = self.open(), self.rung
        kept = {name: image for name, image in images.items() if rung.cameras is None or name in rung.cameras}
        if images and not kept:
            raise RunnerError(f"it looks at {', '.join(rung.cameras or ())}; this frame has {', '.join(images)}")
        if rung.max_new_tokens is not None:
            questions = ask.questions(
                session.manifest.prompts, session.variables, structured_instruction=session.manifest.structured_instruction
            )
            wanted = ask.limits(session.manifest, questions)
            ask = replace(ask, max_new_tokens={name: min(rung.max_new_tokens, tokens) for name, tokens in wanted.items()})
        answers = session.answer_ask(kept, ask)
        self._backoff.succeeded()
        return answers

    def failed(self, error: BaseException) -> str:
        """Let it cool down; what happened, for a message."""
        self._again_s = self._clock() + self._backoff.failed()
        return f"{self.rung.name}: {error or type(error).__name__}"

    def close(self) -> None:
        if self.session is not None:
            self.session.close()


class _Stream:
    """Texts of one rung only: pieces of a second one would be read as going on with the first one's."""

    def __init__(self, on_text: OnText | None) -> None:
        self._on_text = on_text
        self._speaker: int | None = None

    def of(self, rung: int) -> OnText | None:
        on_text = self._on_text
        if on_text is None:
            return None

        def emit(capability: str, piece: str) -> None:
            self._speaker = rung if self._speaker is None else self._speaker
            if self._speaker == rung:
                on_text(capability, piece)

        return emit
