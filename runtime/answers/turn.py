"""One frame at a time: a session keeps pictures and K/V in memory that a second frame would write into."""

from __future__ import annotations

import threading
from types import TracebackType

from drivekd.errors import UsageError


class Turn:
    """Held while a frame is answered. Whoever comes meanwhile, from another thread or from within on_text, gets a UsageError.

    Waiting instead would take from the second frame's deadline, and never end for a callback.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> Turn:
        if not self._lock.acquire(blocking=False):
            raise UsageError(
                "this session is answering a frame already, and its memory holds one frame at a time; give each thread a session "
                "of its own, or let one thread ask for all"
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._lock.release()
