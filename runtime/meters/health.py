"""How a session fares: counters, latency by stage, memory, the last error, as one plain object to publish.

Nothing here grows with time: latencies go into fixed log-spaced buckets, stages are a fixed set, the last error alone stays.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from drivekd.runtime.answers.answer import Answer

State = Literal["ready", "failing", "starting", "degraded", "no_output"]

STAGES = ("vision", "prefill", "questions", "decode", "ttft", "total")
FIRST_MS = 0.01  # the first bucket ends here
PER_OCTAVE = 8  # a bucket's ends are 9 % apart, which bounds a percentile's error
NUM_BUCKETS = 2 + PER_OCTAVE * 27  # up to 0.01 ms * 2^27 = 22 minutes, and one for all that is longer
MAX_ERROR_CHARS = 2000


@dataclass(frozen=True)
class Memory:
    """Of one process, in MB of 1e6 bytes. rss_mb: None where the system does not tell."""

    rss_mb: float | None
    peak_rss_mb: float


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds of `count` frames. The percentiles are within 9 %, the largest value is exact."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class HealthSnapshot:
    """One moment's health. Times are Unix seconds.

    state: "ready" (the last frame was answered, or none came yet), "failing" (the last frame failed), "starting" (a worker's
    child is not ready yet, or again), "degraded" (a lower rung answers), "no_output" (no rung answers). backend: the one in use.
    frames: answered or failed; a frame that was asked wrongly (UsageError, DataError) is neither. failed: without any answer.
    answers: of all capabilities. Among them deadline and cancelled: ended by that; invalid: cut by the token budget, or empty.
    restarts: of a worker's child. fallbacks: frames that a rung took over from a better one.
    latency_ms: by stage, over all answered frames. since: when counting began. last_answer: None = none yet.
    """

    state: State
    backend: str
    since: float
    last_answer: float | None = None
    frames: int = 0
    answers: int = 0
    deadline: int = 0
    cancelled: int = 0
    invalid: int = 0
    failed: int = 0
    restarts: int = 0
    fallbacks: int = 0
    last_error: str = ""
    rss_mb: float | None = None
    peak_rss_mb: float = 0.0
    latency_ms: dict[str, Percentiles] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Health:
    """Records one session's frames. One thread writes; any thread may take a snapshot.

    clock: Unix seconds.
    """

    def __init__(self, backend: str, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._now = HealthSnapshot("ready", backend, since=clock())
        self._latency = {stage: _Histogram() for stage in STAGES}

    def answered(self, answers: Iterable[Answer], timings_ms: Mapping[str, float]) -> None:
        """Count a frame that was answered. timings_ms: by stage; other names than STAGES are left out."""
        answers, now = list(answers), self._now
        cut = [answer.finish_reason for answer in answers]
        self._now = replace(
            now,
            state="ready",
            frames=now.frames + 1,
            answers=now.answers + len(answers),
            deadline=now.deadline + cut.count("deadline"),
            cancelled=now.cancelled + cut.count("cancelled"),
            invalid=now.invalid + sum(not a.valid and a.finish_reason in ("stop", "length") for a in answers),
            last_answer=self._clock(),
        )
        for stage in STAGES:
            if stage in timings_ms:
                self._latency[stage].add(timings_ms[stage])

    def failed(self, error: str) -> None:
        """Count a frame that no answer came for."""
        now = self._now
        self._now = replace(
            now, state="failing", frames=now.frames + 1, failed=now.failed + 1, last_error=error[:MAX_ERROR_CHARS]
        )

    def restarted(self, error: str) -> None:
        """Count a restart of a worker's child, and why."""
        self._now = replace(self._now, restarts=self._now.restarts + 1, last_error=error[:MAX_ERROR_CHARS])

    def fell_back(self, error: str) -> None:
        """Another rung took over, because of `error`; "" = of an earlier one."""
        now = self._now
        last_error = error[:MAX_ERROR_CHARS] or now.last_error
        self._now = replace(now, fallbacks=now.fallbacks + 1, last_error=last_error)

    def uses(self, backend: str) -> None:
        """The backend that answers now."""
        self._now = replace(self._now, backend=backend)

    def snapshot(self, *, state: State | None = None, memory: Memory | None = None) -> HealthSnapshot:
        """state: in place of the recorded one. memory: of the process that the engine runs in, None = this one."""
        memory = memory or memory_mb()
        latency_ms = {stage: found for stage in STAGES if (found := self._latency[stage].percentiles()) is not None}
        return replace(
            self._now,
            state=state or self._now.state,
            rss_mb=memory.rss_mb,
            peak_rss_mb=memory.peak_rss_mb,
            latency_ms=latency_ms,
        )


class _Histogram:
    """Counts of values in log-spaced buckets; bucket i ends at FIRST_MS * 2 ** (i / PER_OCTAVE)."""

    def __init__(self) -> None:
        self._counts = [0] * NUM_BUCKETS
        self._max_ms = 0.0

    def add(self, value_ms: float) -> None:
        self._counts[_bucket(value_ms)] += 1
        self._max_ms = max(self._max_ms, value_ms)

    def percentiles(self) -> Percentiles | None:
        """None without a value."""
        counts, largest = list(self._counts), self._max_ms  # another thread may add
        if not any(counts):
            return None
        p50, p95, p99 = (min(_percentile_ms(counts, share), largest) for share in (0.50, 0.95, 0.99))
        return Percentiles(sum(counts), p50, p95, p99, largest)


def _bucket(value_ms: float) -> int:
    if value_ms <= FIRST_MS:
        return 0
    return min(math.ceil(PER_OCTAVE * math.log2(value_ms / FIRST_MS)), NUM_BUCKETS - 1)


def _percentile_ms(counts: list[int], share: float) -> float:
    """Upper end of the bucket that holds the value below which `share` of all lie (nearest rank)."""
    rank = math.ceil(share * sum(counts))
    seen = 0
    for bucket, count in enumerate(counts[:-1]):
        seen += count
        if seen >= rank:
            return FIRST_MS * math.pow(2, bucket / PER_OCTAVE)
    return math.inf


def memory_mb() -> Memory:
    """Of this process. Not getrusage where there is another way: a child's ru_maxrss starts at its parent's peak (Linux)."""
    if sys.platform == "linux":
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        return Memory(_kib_mb(fields["VmRSS"]), _kib_mb(fields["VmHWM"]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory(None, peak / 1e6)  # macOS counts bytes


def _kib_mb(text: str) -> float:
    """ "  1234 kB" -> 1.263616"""
    return int(text.split()[0]) * 1024 / 1e6
