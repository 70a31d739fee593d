"""How long to wait before something that failed is tried again: twice as long after each failure in a row."""

from __future__ import annotations

from dataclasses import dataclass

# Before a worker starts the next child in place of one that died or hung.
FIRST_RESTART_S, LONGEST_RESTART_S = 0.2, 30.0
# Before a ladder tries a rung that failed again; until then the next one answers.
FIRST_COOL_DOWN_S, LONGEST_COOL_DOWN_S = 5.0, 300.0


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
