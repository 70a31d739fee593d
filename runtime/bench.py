"""How fast a bundle answers on this machine: seeded frames, all capabilities, stage by stage."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drivekd.errors import UsageError

from .answer import Answer
from .golden import golden_images
from .session import Session, load_bundle


@dataclass(frozen=True)
class StageTime:
    """Milliseconds per frame."""

    stage: str
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class BenchReport:
    """decode_tokens_per_s: all branches together, first tokens not counted. peak_rss_mb: of the whole process so far."""

    bundle: str
    backend: str
    device: str
    threads: int | None
    images: int
    frames: int
    warmup: int
    stages: tuple[StageTime, ...]
    decode_tokens_per_s: float
    tokens_per_frame: float
    peak_rss_mb: float

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Stage, p50, p95, p99 (ms) for a table."""
        return [(s.stage, f"{s.p50_ms:.1f}", f"{s.p95_ms:.1f}", f"{s.p99_ms:.1f}") for s in self.stages]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench_bundle(
    path: Path,
    *,
    frames: int = 20,
    warmup: int = 3,
    images: int = 1,
    max_new_tokens: int | None = None,
    backend: str = "auto",
    threads: int | None = None,
    public_key: Path | None = None,
) -> BenchReport:
    """Time `frames` different frames of `images` camera images after `warmup` untimed ones.

    Raises UsageError, BundleError, RunnerError as load_bundle and Session.answer do.
    """
    if frames < 1 or warmup < 0 or images < 1:
        raise UsageError(f"expected frames >= 1, warmup >= 0, images >= 1; got {frames}, {warmup}, {images}")
    with load_bundle(path, backend=backend, threads=threads, public_key=public_key) as session:
        timings: list[dict[str, float]] = []
        answers: list[dict[str, Answer]] = []
        for seed in range(warmup + frames):
            answer = _answer_frame(session, seed, images, max_new_tokens)
            if seed >= warmup:
                timings.append(dict(session.timings_ms))
                answers.append(answer)
        return BenchReport(
            bundle=session.bundle_digest,
            backend=session.backend,
            device=f"{platform.machine()}, {os.cpu_count()} cores",
            threads=threads,
            images=images,
            frames=frames,
            warmup=warmup,
            stages=tuple(_stage_time(stage, timings) for stage in timings[0]),
            decode_tokens_per_s=_decode_rate(timings, answers),
            tokens_per_frame=sum(a.tokens for frame in answers for a in frame.values()) / frames,
            peak_rss_mb=peak_rss_mb(),
        )


def _answer_frame(session: Session, seed: int, images: int, max_new_tokens: int | None) -> dict[str, Answer]:
    """One frame of its own: a repeated one would find its prefix kept."""
    if session.cameras and images > len(session.cameras):
        raise UsageError(f"{images} images asked, this bundle has {len(session.cameras)} cameras")
    tiles = golden_images(session.manifest.images.tile_px, images, seed).values()
    names = session.cameras or [f"camera_{i}" for i in range(images)]
    return session.answer(dict(zip(names, tiles, strict=False)), max_new_tokens=max_new_tokens)


def _stage_time(stage: str, timings: list[dict[str, float]]) -> StageTime:
    p50, p95, p99 = np.percentile([frame[stage] for frame in timings], [50, 95, 99])
    return StageTime(stage, float(p50), float(p95), float(p99))


def _decode_rate(timings: list[dict[str, float]], answers: list[dict[str, Answer]]) -> float:
    tokens = sum(max(answer.tokens - 1, 0) for frame in answers for answer in frame.values())
    seconds = sum(frame["decode"] for frame in timings) / 1000
    return tokens / seconds if tokens else 0.0


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB of 1e6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # macOS counts bytes, Linux KiB
