"""Several calls at once, within a budget. Ends come back to one thread, which alone writes; every call that was sent comes back.

Ctrl-C, a spent budget, a fault that every call would meet: no new call is sent, those under way end (a second Ctrl-C leaves at
once), and each end is handed over before the reason is raised or returned.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeAlias

from drivekd.errors import DrivekdError, JudgeError
from drivekd.evaluate.judge.client import Judge, Reply, Stopped, Unanswered
from drivekd.evaluate.judge.plan import Task
from drivekd.log import logger

MOST_FAILURES_IN_A_ROW = (
    10  # without one reply between them: the endpoint is down or misunderstood, and each failure costs minutes
)

End: TypeAlias = Reply | Unanswered | Stopped | DrivekdError | RuntimeError


@dataclass
class Budget:
    """most: what may be spent in all, None = no limit. spent: so far, with what may have been billed without a reply."""

    most: float | None
    spent: float = 0.0
    reserved: float = 0.0

    def reserve(self, cost: float) -> bool:
        """Set aside what a call costs at most; False when that no longer fits."""
        if self.most is not None and self.spent + self.reserved + cost > self.most:
            return False
        self.reserved += cost
        return True

    def settle(self, reserved: float, spent: float) -> None:
        """A call ended: what it really cost replaces what was set aside."""
        self.reserved -= reserved
        self.spent += spent


@dataclass(frozen=True)
class Book:
    """What the asking thread keeps: most_cost of a call before it is sent; on_end takes each end and says what it cost."""

    budget: Budget
    most_cost: Callable[[Task], float]
    on_end: Callable[[Task, End], float]


def ask_all(tasks: Sequence[Task], judge: Judge, stop: threading.Event, *, concurrency: int, book: Book) -> str:
    """Ask the tasks in their order. Returns why it stopped before their end, "" when it did not.

    Raises JudgeError when no call can succeed, and KeyboardInterrupt.
    """
    pool = _Pool(judge, stop, min(concurrency, len(tasks)))
    waiting, under_way = deque(tasks), dict[str, float]()
    fault: DrivekdError | RuntimeError | None = None
    failures = 0
    with _interrupts_stop(stop) as interrupted:
        while True:
            while waiting and not stop.is_set() and len(under_way) < concurrency:
                if not book.budget.reserve(cost := book.most_cost(waiting[0])):
                    break
                under_way[waiting[0].key] = cost
                pool.send(waiting.popleft())
            if not under_way:
                break
            task, end = pool.receive()
            book.budget.settle(under_way.pop(task.key), book.on_end(task, end))
            failures = failures + 1 if isinstance(end, Unanswered) else 0
            if (found := _fault(end, failures)) is not None:
                fault = fault or found
                stop.set()
        pool.end()
    if interrupted:
        raise KeyboardInterrupt
    if fault is not None:
        raise fault
    return "max_cost is reached" if waiting else ""


def _fault(end: End, failures: int) -> DrivekdError | RuntimeError | None:
    """Why no further call is worth sending."""
    if isinstance(end, DrivekdError | RuntimeError):
        return end
    if isinstance(end, Unanswered) and failures >= MOST_FAILURES_IN_A_ROW:
        return JudgeError(f"{failures} questions in a row got no reply; the last one: {end.reason}. What was judged is kept")
    return None


class _Pool:
    """Threads that ask, and the two queues between them and the one that writes."""

    def __init__(self, judge: Judge, stop: threading.Event, size: int) -> None:
        self._judge, self._stop, self._size = judge, stop, size
        self._jobs: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[tuple[Task, End]] = queue.SimpleQueue()
        for _ in range(size):
            threading.Thread(target=self._work, daemon=True).start()  # daemon: a second Ctrl-C need not wait for a time-out

    def send(self, task: Task) -> None:
        self._jobs.put(task)

    def receive(self) -> tuple[Task, End]:
        return self._ends.get()

    def end(self) -> None:
        for _ in range(self._size):
            self._jobs.put(None)

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            end: End = RuntimeError("a thread that asked the judge died; its traceback is above")
            try:
                end = Stopped(0, 0) if self._stop.is_set() else self._judge.ask(task.messages)
            except (Unanswered, Stopped, DrivekdError) as error:
                end = error
            finally:
                self._ends.put((task, end))


@contextmanager
def _interrupts_stop(stop: threading.Event) -> Iterator[list[int]]:
    """The first Ctrl-C sets `stop` and fills the list, so that no end is lost half-way; the second one is as always."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield seen
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, _: FrameType | None) -> None:
        seen.append(number)
        stop.set()
        signal.signal(signal.SIGINT, before)
        logger.warning("interrupted: calls under way are waited for and kept; Ctrl-C again leaves at once")

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
