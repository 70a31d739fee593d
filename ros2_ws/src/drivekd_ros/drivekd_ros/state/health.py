"""What /diagnostics says, as plain values. No rclpy here."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from enum import IntEnum

from .meter import Reading


class Level(IntEnum):
    """Levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Health:
    """The node at one moment. absent: camera -> "missing" or "stale"; busy_s: running inference; last_error: "" when none."""

    active: bool
    reading: Reading
    drops: dict[str, int]
    absent: dict[str, str]
    busy_s: float
    hung_after_s: float
    alive: bool
    last_error: str
    backend: str
    bundle_digest: str

    @property
    def hung(self) -> bool:
        """An inference runs longer than allowed."""
        return 0 < self.hung_after_s < self.busy_s

    def level(self) -> tuple[Level, str]:
        """Worst fault first."""
        if not self.active:
            return (Level.ERROR, self.last_error) if self.last_error else (Level.OK, "not active")
        if not self.alive:
            return Level.ERROR, "the inference thread has ended"
        if self.hung:
            return Level.ERROR, f"inference hangs: {self.busy_s:.1f} s, allowed {self.hung_after_s:.1f} s"
        if self.last_error:
            return Level.ERROR, self.last_error
        if self.absent:
            return Level.WARN, "no frame set: " + ", ".join(f"{camera} {why}" for camera, why in self.absent.items())
        if not self.reading.answered:
            return Level.WARN, "no answer yet"
        return Level.OK, f"answering at {self.reading.rate_hz:.2f} Hz"

    def values(self) -> dict[str, str]:
        """Key-value pairs; units stand in the keys."""
        reading = self.reading
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
        return {
            "answered_frames": str(reading.answered),
            "rate_hz": f"{reading.rate_hz:.2f}",
            "latency_p50_ms": f"{reading.p50_ms:.1f}",
            "latency_p99_ms": f"{reading.p99_ms:.1f}",
            "age_at_answer_ms": f"{reading.age_ms:.1f}",
            "inference_running_s": f"{self.busy_s:.1f}",
            **{f"camera {camera}": why for camera, why in self.absent.items()},
            **{f"dropped {reason}": str(count) for reason, count in self.drops.items()},
            "backend": self.backend,
            "bundle": self.bundle_digest,
            "peak_memory_mib": f"{peak_mib:.0f}",
            "advisory": "true",
        }
