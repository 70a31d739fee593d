"""From a seed to picture files and records: the work of one process, and how frames are shared among processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from .oracle import Action, plan
from .picture.labels import Label
from .picture.painting import render_frame
from .questions import Record, records_of
from .settings import Split, WorldSettings
from .staging import make_scene

_CHUNK_FRAMES = 8
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class FrameJob:
    """One frame to be made: its number within its split, and the seed of its scene."""

    split: Split
    index: int
    seed: int

    @property
    def name(self) -> str:
        """Of its picture and records, such as train-000017."""
        return f"{self.split}-{self.index:06d}"


@dataclass(frozen=True)
class FrameResult:
    """What is left when the pictures are on disk. image_digest: SHA-256 over the frame's files."""

    job: FrameJob
    records: list[Record]
    action: Action
    image_digest: str
    num_bytes: int


def make_frames(jobs: Sequence[FrameJob], root: Path, settings: WorldSettings) -> Iterator[FrameResult]:
    """Make every frame below `root`, yielding results in the order of `jobs`, whatever the number of processes."""
    workers = min(settings.workers or os.cpu_count() or 1, max(1, len(jobs) // _CHUNK_FRAMES))
    make = partial(make_frame, root=root, settings=settings)
    if workers == 1:
        yield from map(make, jobs)
        return
    # spawn: a fork of a process that has run torch or BLAS threads may hang.
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread_each(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt) as executor,
    ):
        try:
            yield from executor.map(make, jobs, chunksize=_CHUNK_FRAMES)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def make_frame(job: FrameJob, root: Path, settings: WorldSettings) -> FrameResult:
    """Render one frame with every camera, write its JPEGs, return its records."""
    scene = make_scene(job.seed)
    labels: list[Label] = []
    paths: dict[str, str] = {}
    digest, num_bytes = hashlib.sha256(), 0
    for camera in settings.cameras:
        picture, seen = render_frame(scene, camera, settings.image_size_px)
        paths[camera] = f"samples/{camera}/{job.name}.jpg"
        labels += seen
        encoded = BytesIO()
        Image.fromarray(picture).save(encoded, "JPEG", quality=settings.jpeg_quality)
        (root / paths[camera]).write_bytes(encoded.getvalue())
        digest.update(encoded.getvalue())
        num_bytes += encoded.tell()
    records = records_of(scene, labels, paths, scene_name=job.name)
    return FrameResult(job, records, plan(scene).action, digest.hexdigest(), num_bytes)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone shall act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Children read these variables when they load numpy; the parent's own values come back afterwards."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
