"""How fast a bundle answers on this machine: seeded frames, all capabilities, stage by stage."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from drivekd.errors import UsageError
from drivekd.images import RGBImage

from .answers.answer import Answer
from .load import load_bundle
from .meters.health import memory_mb
from .meters.power import PowerMeter, PowerReport
from .parity.golden import golden_images
from .session.session import Session


@dataclass(frozen=True)
class StageTime:
    """Milliseconds per frame."""

    stage: str
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class BenchReport:
    """One measurement and the conditions it was made under.

    images: of a frame; changed: how many of them differ from the frame before. answers: of a frame. prompt_tokens: of the longest
    question with all images. start_s: verify, load and parity gate. counts: means a frame of Session.counts. tokens_per_frame: of
    all answers. decode_tokens_per_s: all answers together, without their first tokens and those that a grammar forced;
    stream_tokens_per_s: of the longest answer alone, None of structured ones. start_rss_mb: of this process before the bundle was
    opened; peak_rss_mb: its largest so far; in MB of 1e6 bytes.
    """

    bundle: str
    model: str
    precision: str
    backend: str
    device: str
    threads: int | None
    images: int
    changed: int
    structured: bool
    answers: int
    prompt_tokens: int
    frames: int
    warmup: int
    start_s: float
    stages: tuple[StageTime, ...]
    counts: dict[str, float]
    tokens_per_frame: float
    decode_tokens_per_s: float
    stream_tokens_per_s: float | None
    start_rss_mb: float
    peak_rss_mb: float
    power: PowerReport = field(default_factory=lambda: PowerReport(0))

    def stage(self, name: str) -> StageTime:
        """One of a session's `timings_ms`, by name. Raises StopIteration: there is none."""
        return next(stage for stage in self.stages if stage.stage == name)

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
    images: int | None = None,
    changed: int | None = None,
    structured: bool = False,
    max_new_tokens: int | None = None,
    backend: str = "auto",
    threads: int | None = None,
    public_key: Path | None = None,
) -> BenchReport:
    """Time `frames` frames after `warmup` untimed ones.

    images: of a frame; None = one for each of the bundle's cameras (one when it names none). changed: how many of them, the last
    in camera order, differ from the frame before; None = all. structured: answers under the bundle's schemas.
    Raises UsageError, BundleError, RunnerError as load_bundle and Session.answer do.

        >>> report = bench_bundle(bundle, frames=2, warmup=1, images=2, changed=1, max_new_tokens=2)
        >>> report.answers, report.counts["images_encoded"]  # a frame: three answers, and one new image of two
        (3, 1.0)
        >>> report.stage("total").p50_ms > 0
        True
    """
    before_mb, began_s = memory_mb().rss_mb, time.perf_counter()
    with load_bundle(path, backend=backend, threads=threads, public_key=public_key) as session:
        start_s, model = time.perf_counter() - began_s, session.model
        images = (len(session.cameras) or 1) if images is None else images
        changed = images if changed is None else changed
        _check(session, frames, warmup, images, changed)
        shown = _frames(session, images, changed)
        for _ in range(warmup):
            session.answer(next(shown), structured=structured, max_new_tokens=max_new_tokens)
        with PowerMeter() as meter:
            taken = [_take(session, next(shown), structured, max_new_tokens) for _ in range(frames)]
        return BenchReport(
            bundle=session.bundle_digest,
            model=_model(session),
            precision=session.manifest.precision,
            backend=session.backend,
            device=f"{platform.machine()}, {os.cpu_count()} cores",
            threads=threads,
            images=images,
            changed=changed,
            structured=structured,
            answers=len(taken[0].answers),
            prompt_tokens=max(len(model.prompt_ids(images, question)) for question in model.questions().values()),
            frames=frames,
            warmup=warmup,
            start_s=start_s,
            stages=tuple(_stage_time(stage, taken) for stage in taken[0].timings_ms),
            counts={name: float(np.mean([frame.counts[name] for frame in taken])) for name in taken[0].counts},
            tokens_per_frame=float(np.mean([sum(a.tokens for a in frame.answers.values()) for frame in taken])),
            decode_tokens_per_s=_rate(taken, [_sampled(frame) for frame in taken]),
            stream_tokens_per_s=None if structured else _rate(taken, [_longest(frame) for frame in taken]),
            start_rss_mb=before_mb or 0.0,
            peak_rss_mb=memory_mb().peak_rss_mb,
            power=meter.report(),
        )


@dataclass(frozen=True)
class _Taken:
    """One timed frame."""

    answers: dict[str, Answer]
    timings_ms: dict[str, float]
    counts: dict[str, int]


def _take(session: Session, frame: dict[str, RGBImage], structured: bool, max_new_tokens: int | None) -> _Taken:
    answers = session.answer(frame, structured=structured, max_new_tokens=max_new_tokens)
    return _Taken(answers, dict(session.timings_ms), dict(session.counts))


def _check(session: Session, frames: int, warmup: int, images: int, changed: int) -> None:
    if frames < 1 or warmup < 0 or images < 1:
        raise UsageError(f"expected frames >= 1, warmup >= 0, images >= 1; got {frames}, {warmup}, {images}")
    if session.cameras and images > len(session.cameras):
        raise UsageError(f"{images} images asked, this bundle has {len(session.cameras)} cameras")
    if not 0 <= changed <= images:
        raise UsageError(f"{changed} changed cameras asked; a frame here has {images}, so 0 to {images}")


def _frames(session: Session, images: int, changed: int) -> Iterator[dict[str, RGBImage]]:
    """Frame after frame; the last `changed` cameras show something new each time, the others always the same.

    They come last since a bundle's cameras do: slow ones first, so that K/V stays good up to the first new image.
    """
    names = (session.cameras or tuple(f"camera_{i}" for i in range(images)))[:images]
    still = _tiles(session, images, 0)
    for seed in count(1):
        fresh = _tiles(session, images, seed)
        yield dict(zip(names, still[: images - changed] + fresh[images - changed :], strict=True))


def _tiles(session: Session, images: int, seed: int) -> list[RGBImage]:
    return list(golden_images(session.manifest.images.tile_px, images, seed).values())


def _model(session: Session) -> str:
    model = session.manifest.model
    return f"{model.family}, {model.num_layers} layers of {model.hidden_size}"


def _stage_time(stage: str, taken: Sequence[_Taken]) -> StageTime:
    p50, p95, p99 = np.percentile([frame.timings_ms[stage] for frame in taken], [50, 95, 99])
    return StageTime(stage, float(p50), float(p95), float(p99))


def _sampled(frame: _Taken) -> int:
    """Tokens that were chosen while decoding: a first token comes of its question, a forced one of the grammar."""
    begun = sum(answer.tokens > 0 for answer in frame.answers.values())
    return max(sum(answer.tokens for answer in frame.answers.values()) - begun - frame.counts["tokens_forced"], 0)


def _longest(frame: _Taken) -> int:
    return max(max(answer.tokens for answer in frame.answers.values()) - 1, 0)


def _rate(taken: Sequence[_Taken], tokens: Sequence[int]) -> float:
    """Tokens a second of decoding, over all frames."""
    seconds = sum(frame.timings_ms["decode"] for frame in taken) / 1000
    return sum(tokens) / seconds if any(tokens) else 0.0
