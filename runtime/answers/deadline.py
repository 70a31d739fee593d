"""Time within one frame: what has passed, and whether the answer is still wanted."""

from __future__ import annotations

import time


class Deadline:
    """Starts now. limit_ms None = never expires. Asked before every engine call, so the bound is the limit plus one call."""

    def __init__(self, limit_ms: float | None = None) -> None:
        self._start = time.perf_counter()
        self._limit_ms = limit_ms

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self._start) * 1000

    def expired(self) -> bool:
        return self._limit_ms is not None and self.elapsed_ms() >= self._limit_ms


class DeadlineExpiredError(Exception):
    """The deadline passed, or the caller cancelled, between two engine calls of one read; the session answers it."""
