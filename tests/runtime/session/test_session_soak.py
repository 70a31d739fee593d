"""20,000 frames: memory does not grow, the slowest frames do not become slower, every structured answer fits its schema.

Some minutes each; -s shows the windows. Time is CPU time of the engine's process, which other processes of the machine move less.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivekd.images import RGBImage
from drivekd.runtime import Session, load_bundle
from drivekd.runtime.answers.ask import Sampling
from drivekd.runtime.answers.schemas import default_schemas, valid_answer
from drivekd.runtime.meters.health import memory_mb
from drivekd.runtime.resilience.worker import WorkerSession, WorkerSettings

Images = dict[str, RGBImage]
FRAMES, WARM_UP, WINDOW = 20_000, 2_000, 2_000
CAMERAS = ("CAM_FRONT", "CAM_BACK")
RSS_GROWTH = 1.01  # the bound
P99_DRIFT = 1.25  # windows of one run differ by up to 15 % here, on a machine that others use

pytestmark = [pytest.mark.numerics, pytest.mark.slow]


@pytest.fixture(params=["session", "worker"])
def session(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Session | WorkerSession]:
    made: Session | WorkerSession
    if request.param == "session":
        made = load_bundle(bundle, threads=1)
    else:  # patient: a machine that others use may stand still for a while
        made = WorkerSession(bundle, settings=WorkerSettings(min_hang_ms=10_000.0), threads=1)
    with made:
        yield made


def frames(rng: np.random.Generator) -> Iterator[Images]:
    """As a car sees them: at each step none, one or all of the cameras show something new."""
    pool = rng.integers(0, 256, (64, 72, 128, 3), dtype=np.uint8)
    images = dict(zip(CAMERAS, pool[:2], strict=True))
    while True:
        for camera in CAMERAS:
            if rng.random() < 0.5:
                images[camera] = pool[rng.integers(len(pool))]
        yield dict(images)


def question(rng: np.random.Generator) -> dict[str, Any]:
    """Every way to ask, at random."""
    return {
        "structured": bool(rng.random() < 0.7),
        "max_new_tokens": int(rng.integers(1, 17)),
        "deadline_ms": None if rng.random() < 0.7 else float(rng.exponential(10.0)),
        "sampling": Sampling(temperature=float(rng.random() < 0.3), seed=int(rng.integers(100))),
        "on_text": (lambda capability, piece: None) if rng.random() < 0.5 else None,
        "cancelled": (lambda: True) if rng.random() < 0.05 else None,
    }


def engine_cpu_s(session: Session | WorkerSession) -> float:
    """CPU seconds of the main thread of the engine's process: an engine with one thread runs in it."""
    pid = session._child.pid if isinstance(session, WorkerSession) else os.getpid()
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def rss_mb(session: Session | WorkerSession) -> list[float]:
    """Of this process, in which torch takes most, and of a worker's child, which has the engines alone."""
    processes = [memory_mb().rss_mb, session.health().rss_mb]
    return [found for found in processes[: 1 + isinstance(session, WorkerSession)] if found is not None]


def test_soak(session: Session | WorkerSession) -> None:
    rng = np.random.default_rng(0)
    schemas = default_schemas(session.cameras)
    source = frames(rng)
    window_ms: list[float] = []
    slowest_ms: list[float] = []
    baseline_mb: list[float] = []
    for number, images in zip(range(1, FRAMES + 1), source, strict=False):
        options, start_s = question(rng), engine_cpu_s(session)
        answers = session.answer(images, **options)
        window_ms.append((engine_cpu_s(session) - start_s) * 1000)
        if options["structured"]:
            assert [valid_answer(schemas[name], answer.structured) for name, answer in answers.items()] == [None] * len(answers)
        if number == WARM_UP:
            baseline_mb = rss_mb(session)
        if number % WINDOW == 0:
            p50_ms, p99_ms = np.percentile(window_ms, [50, 99]).tolist()
            slowest_ms.append(p99_ms)
            found = " + ".join(f"{value:.1f}" for value in rss_mb(session))
            print(f"{number:6} frames  RSS {found} MB  CPU p50 {p50_ms:5.2f} ms  p99 {p99_ms:6.2f} ms", flush=True)
            window_ms = []
    health = session.health()
    print(health.to_json())
    assert health.frames == health.answers // len(session.capabilities) == FRAMES
    assert np.all(np.divide(rss_mb(session), baseline_mb) <= RSS_GROWTH)
    assert np.median(slowest_ms[-3:]) <= np.median(slowest_ms[1:4]) * P99_DRIFT  # the first window is the warm-up
