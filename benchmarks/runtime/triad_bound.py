"""A bundle's decoder bound by hand: what an engine call costs when nothing is around it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.runtime.decode_worker import BoundBundle
from benchmarks.runtime.triad_frame import Found, Frame


class BoundFrames:
    """Reads a frame and its only question; answers go on from there, each from the same place. The mode means nothing."""

    packages: tuple[str, ...] = BoundBundle.packages

    def __init__(self, folder: Path, threads: int) -> None:
        self._bound = BoundBundle(folder, threads)

    def frame(self, frame: Frame, mode: str) -> Found:
        (question,) = frame.questions
        prompt = [*frame.prefix, *question]
        self._num_tokens, self._first = len(prompt), self._bound.start(prompt, frame.tokens)
        return {}

    def answer(self, question: int, tokens: int, mode: str) -> Found:
        self._bound.rewind(self._num_tokens, self._first)
        started_s = time.perf_counter()
        for _ in range(tokens - 1):
            self._bound.step()
        return {"decode_s": time.perf_counter() - started_s, "steps": tokens - 1, "decoded": tokens - 1}

    def logits(self) -> NDArray[np.float32]:
        return self._bound.logits[None]
