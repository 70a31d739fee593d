"""An evaluation's questions dealt out to several processes: whole frames, so that each reads its pictures alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from drivekd.errors import UsageError
from drivekd.sample import Sample


@dataclass(frozen=True)
class Shard:
    """number: from 1 to count."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "2/4" is the second of four. Raises UsageError."""
        match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
        if match is None or int(match[1]) > int(match[2]):
            raise UsageError(f"shard is {text!r}; expected N/COUNT with N from 1 to COUNT, such as 1/4")
        return cls(int(match[1]), int(match[2]))

    @property
    def file(self) -> str:
        """Name of its file of answers."""
        return "predictions.jsonl" if self.count == 1 else f"predictions.{self.number}-of-{self.count}.jsonl"

    def part_of(self, samples: Sequence[Sample]) -> list[int]:
        """Places of this shard's samples, in order; a frame is the same pictures, and goes to one shard."""
        frames: dict[object, int] = {}
        owners = [frames.setdefault((sample.scene, sample.frame, sample.images), len(frames)) for sample in samples]
        return [place for place, owner in enumerate(owners) if owner % self.count == self.number - 1]
