"""What was thrown away and why. Every frame that is not answered is counted here under exactly one reason."""

from __future__ import annotations

import threading
from collections import Counter


class Dropped(Exception):
    """Raised for a frame that is not to be answered and is nobody's error; its words are the reason to count."""


class DropCounts:
    """Thread-safe counter by reason ("superseded", "too_old", "malformed", "stale:CAM_BACK", ...)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count one more drop."""
        with self._lock:
            self._counts[reason] += 1

    def snapshot(self) -> dict[str, int]:
        """Counts so far, by reason, sorted by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))
