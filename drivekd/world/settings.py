"""What to build: how many frames, which cameras, how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from drivekd.errors import UsageError
from drivekd.sample import CAMERAS

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SEEDS_PER_SPLIT = 1_000_000
_SEEDS_PER_WORLD = _SEEDS_PER_SPLIT * len(SPLITS)


@dataclass(frozen=True)
class WorldSettings:
    """Everything but the place. The same settings give the same files on the same machine.

    labelled_frames: the first frames of train, which keep their answers; the others go to unlabelled.json.
    cameras: must hold CAM_FRONT, because the answers are about what it shows. image_size_px: width, height.
    workers: processes; 0 = one a core. They change the speed and nothing else.
    """

    train_frames: int = 2000
    labelled_frames: int = 400
    validation_frames: int = 200
    test_frames: int = 400
    cameras: tuple[str, ...] = ("CAM_FRONT",)
    image_size_px: tuple[int, int] = (320, 180)
    seed: int = 0
    workers: int = 0
    jpeg_quality: int = 90
    contact_sheet: bool = True

    def __post_init__(self) -> None:
        unknown = [camera for camera in self.cameras if camera not in CAMERAS]
        _require(not unknown, f"cameras holds {unknown}; known are {', '.join(CAMERAS)}")
        _require("CAM_FRONT" in self.cameras, f"cameras is {self.cameras}; it must hold CAM_FRONT")
        _require(len(set(self.cameras)) == len(self.cameras), f"cameras names one twice: {self.cameras}")
        _require(min(self.image_size_px) >= 64, f"image_size_px is {self.image_size_px}; both sides must be at least 64")
        width_px, height_px = self.image_size_px
        # The field of view is fixed across: a wider picture would cut off the signals, which hang high.
        _require(1.0 <= width_px / height_px <= 2.0, f"image_size_px is {self.image_size_px}; it must be 1:1 to 2:1")
        _require(1 <= self.jpeg_quality <= 95, f"jpeg_quality is {self.jpeg_quality}; it must be 1..95")
        _require(self.seed >= 0 and self.workers >= 0, "seed and workers must not be negative")
        for split in SPLITS:
            frames = self.num_frames(split)
            _require(0 <= frames <= _SEEDS_PER_SPLIT, f"{split}_frames is {frames}; it must be 0..{_SEEDS_PER_SPLIT}")
        _require(
            0 <= self.labelled_frames <= self.train_frames,
            f"labelled_frames is {self.labelled_frames}; it must be 0..train_frames ({self.train_frames})",
        )

    def num_frames(self, split: Split) -> int:
        """Of one split, labelled or not."""
        return {"train": self.train_frames, "validation": self.validation_frames, "test": self.test_frames}[split]

    def scene_seeds(self, split: Split) -> range:
        """The seeds of a split's scenes: a million a split, so that no two splits or worlds share a scene."""
        first = self.seed * _SEEDS_PER_WORLD + SPLITS.index(split) * _SEEDS_PER_SPLIT
        return range(first, first + self.num_frames(split))


def _require(fine: bool, complaint: str) -> None:
    if not fine:
        raise UsageError(f"WorldSettings: {complaint}.")
