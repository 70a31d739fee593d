"""Rate and percentiles of the newest answers."""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

import numpy as np

RATE_WINDOW_S = 10.0


class Reading(NamedTuple):
    """answered: frame sets so far; rate_hz: over the last 10 s; p50_ms, p99_ms: of the latency;
    age_ms: of the newest. NaN: unknown.
    """

    answered: int
    rate_hz: float
    p50_ms: float
    p99_ms: float
    age_ms: float


class Meter:
    """Keeps the newest `size` (time, latency, age) triples. Thread-safe."""

    def __init__(self, size: int = 256) -> None:
        self._lock = threading.Lock()
        self._window: deque[tuple[float, float, float]] = deque(maxlen=size)
        self._count = 0

    def add(self, now_s: float, latency_ms: float, age_ms: float) -> None:
        """One frame was answered: monotonic time in s, inference latency and the frame's age at the answer in ms."""
        with self._lock:
            self._window.append((now_s, latency_ms, age_ms))
            self._count += 1

    def read(self, now_s: float) -> Reading:
        """The numbers now (monotonic, s). The rate falls towards 0 when answers stop."""
        with self._lock:
            window, count = list(self._window), self._count
        if not window:
            return Reading(count, *[float("nan")] * 4)
        times_s, latencies_ms, ages_ms = zip(*window, strict=True)
        recent_s = [time_s for time_s in times_s if now_s - time_s < RATE_WINDOW_S]
        rate_hz = (len(recent_s) - 1) / (now_s - recent_s[0]) if len(recent_s) > 1 else 0.0
        p50_ms, p99_ms = (float(value) for value in np.percentile(latencies_ms, [50, 99]))
        return Reading(count, rate_hz, p50_ms, p99_ms, ages_ms[-1])
