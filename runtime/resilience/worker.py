"""A session in a process of its own: an engine that hangs or crashes takes neither its caller nor the car with it.

What can go wrong, and what the caller gets, always as a RunnerError for that one frame:
    the engine refuses a frame        at once; the child lives on, unless it goes on like that: some engines never recover
    the child dies, however it does   at once
    the child hangs                   within twice the frame's deadline; the child is killed
A child that is gone starts again by itself, later after each failure in a row. A frame that comes in the meantime fails at once,
so that a caller can turn to another backend (ladder.py). A stale answer cannot come: replies carry their frame's number, and a
lost child's connection is closed.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from drivekd.contract import Variable
from drivekd.errors import BundleError, DrivekdError, RunnerError
from drivekd.images import RGBImage
from drivekd.runtime.answers.answer import Answer
from drivekd.runtime.answers.ask import Answering, Ask
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.answers.turn import Turn
from drivekd.runtime.bundle.manifest import Manifest
from drivekd.runtime.load import load_bundle
from drivekd.runtime.meters.health import Health, HealthSnapshot, Memory

from .backoff import FIRST_RESTART_S, LONGEST_RESTART_S, BackOff
from .child import Child, ChildLostError
from .server import Done, Failed, OpenSession, Ready, Request, Start, Text
from .shared_images import PlacedImage, SharedImages

HANG_SHARE = 1.75  # of the deadline; what is left of twice the deadline is for killing the child and saying so
CLOSE_S = 1.0
CANCEL_POLL_S = 0.005  # how often a caller's `cancelled` is asked: well below one engine call


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker allows its child.

    start_timeout_s: to verify, load and warm up the bundle. min_hang_ms: an answer that is later than this, and than 1.75 of its
    deadline, is taken for a hang; hang_ms: one without a deadline. first_backoff_s, longest_backoff_s: wait before the child
    starts again. failures: frames in a row that the engine refuses until the child is replaced.
    """

    start_timeout_s: float = 120.0
    hang_ms: float = 300_000.0  # six InternViT tiles took 88 s on two cores in fp32
    min_hang_ms: float = 250.0
    first_backoff_s: float = FIRST_RESTART_S
    longest_backoff_s: float = LONGEST_RESTART_S
    failures: int = 3  # after an illegal memory access CUDA refuses every call of the process


class WorkerSession(Answering):
    """A Session's face on a child process. One thread at a time; health() from any.

    timings_ms, counts: as Session's; "total" includes the way to the child and back. capabilities, cameras, variables, manifest,
    bundle_digest, backend, dialect: of the bundle that its first child has loaded; RunnerError until then.

        >>> from drivekd.runtime import WorkerSession, WorkerSettings
        >>> with WorkerSession(bundle, settings=WorkerSettings(start_timeout_s=60), backend="ort-cpu") as worker:
        ...     answers = worker.answer({"CAM_FRONT": image}, capabilities=["planning"], max_new_tokens=2, deadline_ms=60_000)
        ...     sorted(answers), worker.health().restarts
        (['planning'], 0)
    """

    def __init__(
        self,
        path: Path,
        *,
        settings: WorkerSettings | None = None,
        wait: bool = True,
        open_session: OpenSession = load_bundle,
        **options: object,
    ) -> None:
        """Start the child and wait until it has loaded the bundle; wait=False: it loads while the caller goes on.

        options: what load_bundle takes (backend, threads, expect_digest, ...). open_session: called in the child in place of
        load_bundle; it must be importable by name there.
        Raises as load_bundle does, RunnerError also when the child dies or takes too long.
        """
        inspect.signature(open_session).bind(path, **options)  # a wrong option raises its TypeError here, not in the child
        self.timings_ms: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._settings = settings or WorkerSettings()
        self._open = (open_session, Path(path), dict(options))
        self._backoff = BackOff(self._settings.first_backoff_s, self._settings.longest_backoff_s)
        self._health = Health(str(options.get("backend", "auto")))
        self._memory = Memory(None, 0.0)
        self._known: Ready | None = None  # what the newest child said
        self._why = "its first child"
        self._frame = 0
        self._dead: list[Child] = []  # killed, and perhaps not gone yet
        self._closed = False
        self._turn = Turn()
        self._images = SharedImages()
        self._start(0.0)
        if wait:
            self._await_first()

    @property
    def capabilities(self) -> tuple[str, ...]:
        return self._facts().capabilities

    @property
    def cameras(self) -> tuple[str, ...]:
        return self._facts().cameras

    @property
    def variables(self) -> dict[str, Variable]:
        return self._facts().variables

    @property
    def bundle_digest(self) -> str:
        return self._facts().bundle_digest

    @property
    def backend(self) -> str:
        return self._facts().backend

    @property
    def dialect(self) -> str:
        return self._facts().dialect

    @property
    def manifest(self) -> Manifest:
        return self._facts().manifest

    def __enter__(self) -> WorkerSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child; a second call does nothing."""
        self._closed = True
        self._child.end(CLOSE_S)
        self._images.close()

    def health(self) -> HealthSnapshot:
        """Of all frames since the worker was made, whichever child they went to; memory: of the child."""
        ready = self._ready and self._child.alive()
        return self._health.snapshot(state=None if ready else "starting", memory=self._memory)

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether the child takes frames, at the latest after timeout_s. Raises RunnerError: closed, or no process to be had."""
        self._check_open()
        until_s = time.monotonic() + timeout_s
        while not self._ready:
            left_s = until_s - time.monotonic()
            error = self._greet(left_s)
            if error is not None:
                self._restart(f"the worker did not start: {error}")
            elif not self._ready and left_s <= 0:
                return False
        return True

    def answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        """As Session.answer_ask, in the child; on_text and cancelled are called here.

        Raises what that raises, and RunnerError when the child was lost with this frame or is starting.
        """
        with self._turn:
            return self._answer_ask(images, ask)

    def _answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        self._check_open()
        caller = _Caller(ask, Deadline(ask.deadline_ms), self._hang_ms(ask.deadline_ms))
        self.timings_ms, self.counts = {}, {}
        try:
            done = self._answer(images, caller)
        except RunnerError as error:
            self._health.failed(str(error))
            raise
        self._failures = 0
        self._backoff.succeeded()
        self.timings_ms, self.counts = done.timings_ms | {"total": caller.clock.elapsed_ms()}, done.counts
        self._health.answered(done.answers.values(), self.timings_ms)
        return done.answers

    def _answer(self, images: Mapping[str, RGBImage], caller: _Caller) -> Done:
        if not self.wait_ready(0.0):
            raise RunnerError(f"the worker is starting ({self._why})")
        try:
            self._settle(caller)
            placed = self._images.write(images)
            self._frame += 1
            self._child.send(caller.request(self._frame, placed))
            self._unfinished = self._frame  # not before: what cannot be sent is no frame that the child works on
            reply = self._receive(self._frame, caller)
        except ChildLostError as error:
            raise RunnerError(self._restart(f"the worker {error}")) from error
        finally:
            self._images.cancel(self._frame)  # when on_text or cancelled has raised: nobody waits for this frame any more
        if isinstance(reply, Failed):
            raise self._refused(reply.error)
        return reply

    def _refused(self, error: DrivekdError) -> DrivekdError:
        """What to raise for a frame that ended with an error in the child."""
        if not isinstance(error, RunnerError):
            return error  # the caller's
        self._failures += 1
        if self._failures < self._settings.failures:
            return error
        return RunnerError(self._restart(f"the worker refused {self._failures} frames in a row, the last one with: {error}"))

    def _settle(self, caller: _Caller) -> None:
        """Wait for the end of a frame that its caller has left: the child may still read the images, overwritten next."""
        if self._unfinished:
            self._receive(self._unfinished, _Caller(Ask(), caller.clock, caller.hang_ms))

    def _receive(self, frame: int, caller: _Caller) -> Done | Failed:
        """The reply to a frame, its texts handed on as they come. Raises ChildLostError."""
        on_text, cancelled = caller.ask.on_text, caller.ask.cancelled
        while True:
            left_s = caller.patience_s()
            if cancelled is not None and cancelled():
                self._images.cancel(frame)
            reply = self._child.receive(left_s if cancelled is None else min(left_s, CANCEL_POLL_S))
            if isinstance(reply, Text) and reply.frame == frame and on_text is not None:
                on_text(reply.capability, reply.piece)
            elif isinstance(reply, (Done, Failed)) and reply.frame == frame:
                self._unfinished, self._memory = 0, reply.memory
                return reply
            elif reply is None and left_s <= 0:
                raise ChildLostError(
                    f"gave no answer within {caller.hang_ms:.0f} ms and was killed. If its engine is healthy and as slow as "
                    "that, raise the deadline, min_hang_ms or hang_ms"
                )

    def _hang_ms(self, deadline_ms: float | None) -> float:
        if deadline_ms is None:
            return self._settings.hang_ms
        return max(HANG_SHARE * deadline_ms, self._settings.min_hang_ms)

    def _check_open(self) -> None:
        if self._closed:
            raise RunnerError("the worker is closed; make another")

    def _facts(self) -> Ready:
        if self._known is None:
            raise RunnerError("the worker's first child is still starting; call wait_ready() first")
        return self._known

    def _start(self, delay_s: float) -> None:
        open_session, path, options = self._open
        self._ready = False
        self._unfinished = 0  # a frame that the child may still work on
        self._failures = 0
        self._start_until_s = time.monotonic() + delay_s + self._settings.start_timeout_s
        self._child: Child = Child(Start(open_session, path, options, delay_s), self._images.descriptor)

    def _restart(self, reason: str) -> str:
        """Let another child take this one's place; what happened, for a message."""
        self._child.end()
        self._dead.append(self._child)
        delay_s = self._backoff.failed()
        self._health.restarted(reason)
        self._why = reason
        self._start(delay_s)
        return f"{reason}; it starts again in {delay_s:.1f} s"

    def _await_first(self) -> None:
        while not self._ready:
            error = self._greet(self._settings.start_timeout_s)
            if error is not None:
                self.close()
                raise error

    def _greet(self, timeout_s: float) -> DrivekdError | None:
        """Take the child's first message if it comes in time. Returns why there will be none; None = it is ready, or not yet."""
        left_s = self._start_until_s - time.monotonic()
        try:
            reply = self._child.receive(max(min(timeout_s, left_s), 0.0))
        except ChildLostError as error:
            return RunnerError(f"the worker {error}")
        if isinstance(reply, Ready):
            return self._adopt(reply)
        if isinstance(reply, Failed):
            return reply.error
        if left_s <= 0:
            return RunnerError(f"{self._open[1]} was not loaded within {self._settings.start_timeout_s:.0f} s (start_timeout_s)")
        return None

    def _adopt(self, ready: Ready) -> BundleError | None:
        if self._known is not None and ready.bundle_digest != self._known.bundle_digest:
            return BundleError(
                f"{self._open[1]} was {self._known.bundle_digest} and is {ready.bundle_digest} now; make a new worker for it"
            )
        self._known, self._memory, self._ready = ready, ready.memory, True
        self._dead = [child for child in self._dead if child.alive()]
        self._health.uses(ready.backend)
        return None


@dataclass(frozen=True)
class _Caller:
    """Who waits for a frame, since clock's start. hang_ms: how long before its child is given up."""

    ask: Ask
    clock: Deadline
    hang_ms: float

    def request(self, frame: int, images: list[PlacedImage]) -> Request:
        """For the child: what is left of the deadline; on_text and cancelled, which stay here, have their own ways there."""
        variables = {name: str(value) for name, value in (self.ask.variables or {}).items()}  # as templates show them
        ask = replace(self.ask, variables=variables, deadline_ms=self.clock.left_ms(), on_text=None, cancelled=None)
        return Request(frame, images, ask, stream=self.ask.on_text is not None)

    def patience_s(self) -> float:
        """What is left until hang_ms, in seconds; at most an hour, since polling takes no more: then it is asked again."""
        return min(max(self.hang_ms - self.clock.elapsed_ms(), 0.0) / 1000, 3600.0)
