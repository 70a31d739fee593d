"""What a run's validations have shown so far: the best one, and for how long there has been no better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Validations:
    """last: the newest loss (CE). best, best_step: the lowest, and when. without_gain: validations since then."""

    last: float | None = None
    best: float | None = None
    best_step: int | None = None
    without_gain: int = 0

    def after(self, step: int, loss: float) -> Validations:
        """With one more. Only a lower loss is better: of equals the first stays."""
        if self.best is None or loss < self.best:
            return Validations(loss, loss, step)
        return Validations(loss, self.best, self.best_step, self.without_gain + 1)

    def exhausted(self, patience: int) -> bool:
        """Whether to stop early; patience 0 = never."""
        return 0 < patience <= self.without_gain
