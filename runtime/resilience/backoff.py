"""How long to wait before something that failed is tried again: twice as long after each failure in a row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class BackOff:
    """first_s: wait after the first failure. longest_s: no wait is longer. failures: in a row."""

    first_s: float
    longest_s: float
    failures: int = 0

    def failed(self) -> float:
        """Count a failure; returns the seconds to wait."""
        self.failures += 1
        # the exponent is bounded: 2 ** 1024 is no float
        return min(self.first_s * 2.0 ** min(self.failures - 1, 60), self.longest_s)

    def succeeded(self) -> None:
        """The next wait is the first again."""
        self.failures = 0
