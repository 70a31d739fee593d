"""What the engines of `triad.py` are asked, and their face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Found = dict[str, Any]  # what a call found, as it goes into JSON


@dataclass(frozen=True)
class Frame:
    """prefix: ids of system prompt and images, these written as text. content: of each image alone. tokens: of each answer."""

    prefix: list[int]
    content: list[list[int]]
    questions: list[list[int]]
    tokens: int


class FrameEngine(Protocol):
    """packages: whose versions a figure depends on. A mode is a way in which the engine may be asked."""

    packages: tuple[str, ...]

    def frame(self, frame: Frame, mode: str) -> Found:
        """Read a new frame and answer its questions."""
        ...

    def answer(self, question: int, tokens: int, mode: str) -> Found:
        """Answer one question of the last frame once more; nothing of the frame is read again."""
        ...

    def logits(self) -> NDArray[np.float32]:
        """Behind each question of the last frame, [questions, V]."""
        ...
