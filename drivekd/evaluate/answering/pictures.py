"""What a model is shown of a record's pictures: as they are, black, or spoilt on purpose, the whole frame at once."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from drivekd.camera_order import camera_names
from drivekd.errors import DataError
from drivekd.evaluate.corruptions import corrupted_frame, frame_seed
from drivekd.evaluate.corruptions.settings import CLEAN as CLEAN_SETTING
from drivekd.evaluate.corruptions.settings import NO_IMAGE
from drivekd.images import RGBImage, load_image
from drivekd.sample import Sample

BLACK_PX = 2  # a black picture is black in any size
READERS = 4  # pictures that are decoded at once

Ready = TypeVar("Ready")


@dataclass(frozen=True)
class Pictures:
    """setting: one of drivekd.evaluate.corruptions.SETTINGS. severity: None = the setting's own. seed: of its chances."""

    setting: str = CLEAN_SETTING
    severity: int | None = None
    seed: int = 0

    @property
    def are_black(self) -> bool:
        """Whether there is nothing to see, so that no file is read."""
        return self.setting == NO_IMAGE

    @property
    def by_frame(self) -> bool:
        """Whether what happens to one picture depends on the others of its frame."""
        return self.setting not in (CLEAN_SETTING, NO_IMAGE)

    def keys(self, sample: Sample) -> tuple[Hashable, ...]:
        """One for each picture of the sample; pictures with equal keys look the same, whoever asks for them."""
        if self.are_black:
            return (None,) * len(sample.images)
        return tuple((sample.images, index) for index in range(len(sample.images))) if self.by_frame else sample.images

    def frame(self, sample: Sample) -> list[RGBImage]:
        """The sample's pictures [H, W, 3] as they are shown, in its order. Raises DataError naming the record."""
        if not self.by_frame:
            return [self.one(sample, index) for index in range(len(sample.images))]
        names = _names(sample)
        images = {name: _loaded(sample, index) for index, name in enumerate(names)}
        seed = frame_seed(self.seed, sample.frame or " ".join(path.name for path in sample.images))
        spoilt = corrupted_frame(images, self.setting, severity=self.severity, seed=seed)
        return [spoilt[name] for name in names]

    def one(self, sample: Sample, index: int) -> RGBImage:
        """One picture of `frame`, where the others do not matter."""
        assert not self.by_frame
        if self.are_black:
            return np.zeros((BLACK_PX, BLACK_PX, 3), np.uint8)
        return _loaded(sample, index)


CLEAN = Pictures()


def _names(sample: Sample) -> tuple[str, ...]:
    """What happens to a picture depends on its camera's name; where the record says none, on its place."""
    return camera_names(sample) or tuple(f"picture {index}" for index in range(len(sample.images)))


def _loaded(sample: Sample, index: int) -> RGBImage:
    try:
        return load_image(sample.images[index])
    except DataError as error:
        raise DataError(f"{sample.source}: images: {error}") from error


class PictureReader(Generic[Ready]):
    """Reads pictures ahead of their use, in threads; each one goes through `prepare`. A context manager."""

    def __init__(self, pictures: Pictures, prepare: Callable[[RGBImage], Ready]) -> None:
        self._pictures, self._prepare = pictures, prepare
        self._pool = ThreadPoolExecutor(READERS)
        self._ahead: dict[Hashable, tuple[Future[list[Ready]], int]] = {}

    def __enter__(self) -> PictureReader[Ready]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, sample: Sample, known: Container[Hashable] = ()) -> None:
        """Start reading what the sample shows, but for the keys that are known, and what is being read already."""
        wanted = {
            key: index for index, key in enumerate(self._pictures.keys(sample)) if key not in known and key not in self._ahead
        }
        if wanted and self._pictures.by_frame:
            whole = self._pool.submit(self._frame, sample)
            self._ahead |= {key: (whole, index) for key, index in wanted.items()}
        else:
            self._ahead |= {key: (self._pool.submit(self._one, sample, index), 0) for key, index in wanted.items()}

    def take(self, key: Hashable) -> Ready:
        """A picture whose reading has begun, once. Raises DataError naming the record that it was begun for."""
        future, index = self._ahead.pop(key)
        return future.result()[index]

    def _frame(self, sample: Sample) -> list[Ready]:
        return [self._prepare(image) for image in self._pictures.frame(sample)]

    def _one(self, sample: Sample, index: int) -> list[Ready]:
        return [self._prepare(self._pictures.one(sample, index))]
