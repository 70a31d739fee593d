"""The one thread that infers. Subscriber callbacks only fill the mailbox; everything that takes time happens here.

Choices: questions of the Ask action come before frames, one at a time; the session is touched by this thread alone. `stop`
never waits longer than it is told: text callbacks raise inside the session, so a stop takes one token, and a session that
does not come back is reported, not waited for. A refused frame (malformed image) is counted and the thread lives on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from drivekd.errors import DataError, DrivekdError
from drivekd_ros.input.conversions import CameraMessage
from drivekd_ros.input.drops import DropCounts, Dropped
from drivekd_ros.input.mailbox import FrameMailbox, FrameSet

TAKE_TIMEOUT_S = 0.2  # how often the thread looks whether it shall stop, should a wake be lost

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised inside a text callback to leave an inference that nobody waits for any more."""


class Worker:
    """Takes the newest frame set, calls `infer` with it, and does so again.

    infer(frame_set): converts, infers and publishes; raises DataError for a frame that cannot be used, Dropped for one that
    shall not be, another DrivekdError when the engine fails, Stopped to leave early. on_error(message): told of every
    DrivekdError.
    """

    def __init__(
        self,
        mailbox: FrameMailbox[CameraMessage],
        infer: Callable[[FrameSet[CameraMessage]], None],
        *,
        drops: DropCounts,
        on_error: Callable[[str], None],
    ) -> None:
        self._mailbox = mailbox
        self._infer = infer
        self._drops = drops
        self._on_error = on_error
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._busy_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="drivekd-inference", daemon=True)

    def start(self) -> None:
        """Start the thread. A worker starts once."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to end and wait at most timeout_s. False: it still infers, so the session must not be closed."""
        self._stopping.set()
        self._mailbox.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` on the thread before the next frame. A job raises nothing but DrivekdError and Stopped."""
        self._jobs.put(job)
        self._mailbox.wake()

    def busy_s(self) -> float:
        """Seconds that the present inference has taken; 0 when idle."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def check_stop(self) -> None:
        """Raise Stopped when the worker shall end; call it from the session's text callback."""
        if self._stopping.is_set():
            raise Stopped

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._step()
            except Stopped:
                logger.debug("inference left early")
            except Dropped as reason:
                self._drops.add(str(reason))
            except DataError as error:
                self._drops.add("malformed")
                self._on_error(str(error))
            except DrivekdError as error:
                self._drops.add("inference_failed")
                self._on_error(str(error))
            finally:
                self._busy_since_s = None

    def _step(self) -> None:
        """One question, or else one frame set."""
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            frame_set = self._mailbox.take(TAKE_TIMEOUT_S)
            if frame_set is not None:
                self._busy_since_s = time.monotonic()
                self._infer(frame_set)
            return
        self._busy_since_s = time.monotonic()
        job()
