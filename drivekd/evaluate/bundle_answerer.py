"""A bundle that answers many questions through the runtime, as the car would: one at a time, the frame's K/V kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from drivekd.errors import DataError
from drivekd.evaluate.scores import ImageSetting
from drivekd.images import RGBImage, load_image
from drivekd.runtime import load_bundle, read_bundle
from drivekd.sample import CAMERAS, Sample

_CAMERA = re.compile("|".join(rf"{camera}(?![A-Z_]*[A-Z])" for camera in CAMERAS))


class BundleAnswerer:
    """Greedy texts of a bundle. backend, threads: as load_bundle takes them. max_new_tokens: a longer answer is cut there."""

    def __init__(self, bundle: Path, *, max_new_tokens: int, backend: str = "auto", threads: int | None = None) -> None:
        self.name = str(bundle)
        self.digest = read_bundle(bundle).digest
        self._bundle = bundle
        self._backend = backend
        self._max_new_tokens = max_new_tokens
        self._threads = threads

    def answers(
        self,
        samples: Sequence[Sample],
        *,
        images: ImageSetting = "clean",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Texts in the order of `samples`. Raises DataError naming the record with an image that cannot be used."""
        texts = [""] * len(samples)
        by_frame = sorted(range(len(samples)), key=lambda i: samples[i].images)
        shown: tuple[Path, ...] = ()
        frame: dict[str, RGBImage] = {}
        with load_bundle(self._bundle, backend=self._backend, threads=self._threads, expect_digest=self.digest) as session:
            for num_done, i in enumerate(by_frame, start=1):
                sample = samples[i]
                if sample.images != shown:
                    frame, shown = _frame(sample, session.cameras, images), sample.images
                answer = session.answer_question(frame, sample.question, max_new_tokens=self._max_new_tokens)
                texts[i] = answer.text
                if on_progress is not None:
                    on_progress(num_done, len(samples))
        return texts


def _frame(sample: Sample, cameras: Sequence[str], images: ImageSetting) -> dict[str, RGBImage]:
    """The sample's images by camera name."""
    names = camera_names(sample, cameras)
    if images == "black":
        return {name: np.zeros((2, 2, 3), np.uint8) for name in names}
    try:
        return {name: load_image(path) for name, path in zip(names, sample.images, strict=True)}
    except DataError as error:
        raise DataError(f"{sample.source}: images: {error}") from error


def camera_names(sample: Sample, cameras: Sequence[str]) -> tuple[str, ...]:
    """Which camera took each image: named in its path (.../CAM_BACK/x.jpg), else the bundle's cameras in their order.

    Raises DataError when neither tells.
    """
    found = [_CAMERA.findall(str(path)) for path in sample.images]
    names = tuple(matches[-1] for matches in found if matches)
    if len(names) == len(set(names)) == len(sample.images):
        return names
    known = tuple(cameras) or (CAMERAS if len(sample.images) == len(CAMERAS) else CAMERAS[:1])
    if len(known) != len(sample.images):
        raise DataError(
            f"{sample.source}: images: cannot tell the cameras of {len(sample.images)} images; "
            f"expected their names in the paths, or as many images as the bundle has cameras ({len(known)})"
        )
    return known
