"""The vehicle's forward speed at the moment of a frame."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import NamedTuple

HISTORY = 512  # at 200 Hz this is 2.5 s, more than a frame waits


class Speed(NamedTuple):
    """speed_mps: m/s, negative backwards; measured: False when it is the configured default."""

    speed_mps: float
    measured: bool


class EgoSpeed:
    """Newest measured speed at or before a frame's stamp, if within the tolerance; else the configured default.

    default_mps: m/s. tolerance_ms: how much older than the frame a measurement may be.
    """

    def __init__(self, default_mps: float, tolerance_ms: float) -> None:
        self._default_mps = default_mps
        self._tolerance_ns = int(tolerance_ms * 1e6)
        self._lock = threading.Lock()
        self._history: deque[tuple[int, float]] = deque(maxlen=HISTORY)

    def put(self, stamp_ns: int, speed_mps: float) -> bool:
        """Keep a measurement. False (and not kept) when it is not finite."""
        if not math.isfinite(speed_mps):
            return False
        with self._lock:
            self._history.append((stamp_ns, speed_mps))
        return True

    def at(self, stamp_ns: int) -> Speed:
        """Speed for a frame of this stamp; a later measurement is never used."""
        with self._lock:
            known = [(stamp, speed) for stamp, speed in self._history if 0 <= stamp_ns - stamp <= self._tolerance_ns]
        if not known:
            return Speed(self._default_mps, measured=False)
        return Speed(max(known)[1], measured=True)
