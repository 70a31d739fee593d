"""What a health snapshot says is what happened, within a bucket's width, and recording never grows."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.runtime.answers.answer import Answer, FinishReason
from drivekd.runtime.meters.health import PER_OCTAVE, STAGES, Health, memory_mb
from drivekd.runtime.resilience.backoff import BackOff

BUCKET = 2 ** (1 / PER_OCTAVE) * (1 + 1e-9)  # a percentile is the upper end of its bucket

milliseconds = st.floats(0.011, 1e6)


def answer(finish_reason: FinishReason = "stop", *, valid: bool = True) -> Answer:
    return Answer("planning", "Brake.", finish_reason=finish_reason, valid=valid)


@given(st.lists(milliseconds, min_size=1, max_size=200))
def test_percentiles_are_those_of_the_values_within_a_bucket(values_ms: list[float]) -> None:
    health = Health("ort-cpu")
    for value_ms in values_ms:
        health.answered([answer()], {"total": value_ms})
    found = health.snapshot().latency_ms["total"]
    assert found.count == len(values_ms)
    assert found.max_ms == max(values_ms)
    for share, percentile_ms in ((0.50, found.p50_ms), (0.95, found.p95_ms), (0.99, found.p99_ms)):
        exact = sorted(values_ms)[math.ceil(share * len(values_ms)) - 1]  # nearest rank
        assert exact <= percentile_ms * (1 + 1e-9)
        assert percentile_ms <= exact * BUCKET


@pytest.mark.parametrize("value_ms", [0.0, 1e-9, 1e9, 1e300])
def test_values_beyond_the_buckets_are_counted(value_ms: float) -> None:
    health = Health("ort-cpu")
    health.answered([answer()], {"total": value_ms})
    found = health.snapshot().latency_ms["total"]
    assert (found.count, found.max_ms, found.p99_ms) == (1, value_ms, value_ms)


@given(st.lists(st.tuples(st.sampled_from(["stop", "length", "deadline", "cancelled", "failed"]), st.booleans())))
def test_every_answer_is_in_one_class(frames: list[tuple[str, bool]]) -> None:
    health = Health("ort-cpu")
    for reason, valid in frames:
        if reason == "failed":
            health.failed("the engine refused")
        else:
            health.answered([answer(reason, valid=valid)], {})  # type: ignore[arg-type]
    found = health.snapshot()
    reasons = [reason for reason, _ in frames]
    assert found.frames == len(frames) == found.answers + found.failed
    assert (found.failed, found.deadline) == (reasons.count("failed"), reasons.count("deadline"))
    assert found.cancelled == reasons.count("cancelled")
    assert found.invalid == sum(not valid and reason in ("stop", "length") for reason, valid in frames)
    assert found.state == ("failing" if reasons[-1:] == ["failed"] else "ready")


def test_an_error_stays_and_the_state_goes() -> None:
    times = iter(range(100))
    health = Health("ort-cpu", clock=lambda: float(next(times)))
    assert health.snapshot().last_answer is None
    health.failed("x" * 100_000)
    health.answered([answer(), answer("deadline", valid=False)], {"total": 5.0})
    found = health.snapshot()
    assert (found.state, found.since, found.last_answer) == ("ready", 0.0, 1.0)
    assert 0 < len(found.last_error) < 10_000
    assert json.loads(json.dumps(found.to_json()))["latency_ms"]["total"]["count"] == 1


def test_recording_does_not_grow() -> None:
    health = Health("ort-cpu", clock=float)
    sizes = []
    for frame in range(2000):
        timings_ms = dict.fromkeys(STAGES, 1.0 + frame) | {f"capability_{frame}": 1.0}
        health.answered([answer()], timings_ms)
        health.failed(f"frame {frame}")
        sizes.append(len(pickle.dumps(health)))
    assert max(sizes) - sizes[10] < 2000  # digits of counters: a pickled int takes 2 to 5 bytes in each of 218 buckets


@pytest.mark.e2e
def test_memory_is_this_processs_own() -> None:
    before = memory_mb()
    block = np.ones(300_000_000, np.uint8)
    after = memory_mb()
    assert before.rss_mb is not None
    assert after.rss_mb is not None
    assert after.rss_mb - before.rss_mb > 250  # some of it may have been free already
    assert after.peak_rss_mb >= after.rss_mb * 0.99
    code = "from drivekd.runtime.meters.health import memory_mb; print(memory_mb().peak_rss_mb)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False)
    block[:] = 2
    assert float(child.stdout) < 280, "a child's ru_maxrss starts at its parent's peak; its own is near 100 MB"


@given(st.floats(0.01, 10), st.floats(10, 1000), st.integers(1, 2000))
def test_waits_double_up_to_the_longest(first_s: float, longest_s: float, failures: int) -> None:
    backoff = BackOff(first_s, longest_s)
    waits = [backoff.failed() for _ in range(failures)]
    assert waits[0] == first_s
    assert all(b == min(2 * a, longest_s) for a, b in itertools.pairwise(waits))
    backoff.succeeded()
    assert backoff.failed() == first_s
