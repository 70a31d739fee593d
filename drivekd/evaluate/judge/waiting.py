"""How long to wait before another attempt: doubling with jitter, or what the server asks for, and then every thread waits."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Mapping


def backoff_s(failures: int, *, first_s: float, most_s: float) -> float:
    """The wait behind so many failures: half fixed, half drawn, so that callers who failed together do not come back together."""
    whole_s = min(most_s, first_s * 2.0 ** min(failures - 1, 32))
    return whole_s * (0.5 + random.random() / 2)


def retry_after_s(headers: Mapping[str, str], *, now_s: float | None = None) -> float | None:
    """What a server asks for: Retry-After-Ms, or Retry-After in seconds or as a date (RFC 9110, 10.2.3). None: nothing usable.

    now_s: seconds since 1970, for the date; default now.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            wait_s = float(text) * scale
        except ValueError:
            continue
        if 0 <= wait_s < 1e9:
            return wait_s
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - (time.time() if now_s is None else now_s))
    except (ValueError, TypeError, OverflowError):
        return None


class Pause:
    """One time before which no thread calls the endpoint; `stop` ends every wait."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        self._until_s = 0.0

    def hold(self, seconds: float) -> None:
        """All wait at least so long from now."""
        with self._lock:
            self._until_s = max(self._until_s, time.monotonic() + seconds)

    def wait(self, seconds: float = 0.0) -> bool:
        """Wait so long, and until nobody is held; False when stopped meanwhile."""
        if seconds and self._stop.wait(seconds):
            return False
        while True:
            with self._lock:
                left_s = self._until_s - time.monotonic()
            if left_s <= 0:
                return not self._stop.is_set()
            if self._stop.wait(left_s):
                return False
