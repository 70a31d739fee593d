"""Time within one frame: what has passed, and whether the answer is still wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

Cancelled = Callable[[], bool]
Interruption = Literal["deadline", "cancelled"]


class Deadline:
    """Starts now. limit_ms: None = never expires. cancelled: True when nobody wants the answer any more, None = somebody does.

    Asked before every engine call, so the bound is the limit plus one call.
    """

    def __init__(self, limit_ms: float | None = None, cancelled: Cancelled | None = None) -> None:
        self._start = time.perf_counter()
        self._limit_ms = limit_ms
        self._cancelled = cancelled

    def elapsed_ms(self) -> float:
        """Since it was made."""
        return (time.perf_counter() - self._start) * 1000

    def left_ms(self) -> float | None:
        """Until the limit, 0 behind it; None without one."""
        return None if self._limit_ms is None else max(self._limit_ms - self.elapsed_ms(), 0.0)

    def interruption(self) -> Interruption | None:
        """Why the answer must end now; None = go on."""
        if self._cancelled is not None and self._cancelled():
            return "cancelled"
        return "deadline" if self._limit_ms is not None and self.elapsed_ms() >= self._limit_ms else None


class DeadlineExpiredError(Exception):
    """The deadline passed, or the caller cancelled, between two engine calls of one read; the session answers it."""
