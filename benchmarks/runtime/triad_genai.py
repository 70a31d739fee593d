"""onnxruntime-genai answers three questions about one prompt: from the start each, with its prefix kept, or as one batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.runtime.decode_worker import open_genai
from benchmarks.runtime.triad_frame import Found, Frame

SLACK = 8  # a sequence that reaches its largest length takes no more steps


class GenaiFrames:
    """Modes: "separate", three generators that each read everything; "kept", one generator that is rewound to the prefix
    (continuous decoding); "batch", three prompts of equal length in one generator."""

    packages: tuple[str, ...] = ("onnxruntime-genai", "onnxruntime", "numpy")

    def __init__(self, folder: Path, threads: int) -> None:
        self._genai, self._model = open_genai(folder, threads)
        self._frame: Frame | None = None
        self._kept: Any = None

    def frame(self, frame: Frame, mode: str) -> Found:
        self._frame = frame
        self._kept = None  # its memory goes before the next one's comes
        return {"separate": self._separate, "kept": self._keep, "batch": self._batch}[mode](frame)

    def answer(self, question: int, tokens: int, mode: str) -> Found:
        """One answer; the frame before was read with "kept"."""
        assert self._frame is not None
        stages: dict[str, float] = {}
        self._ask(self._frame.questions[question], tokens, stages)
        return _found(stages, tokens - 1)

    def logits(self) -> NDArray[np.float32]:
        assert self._frame is not None
        rows = []
        for question in self._frame.questions:
            self._kept.append_tokens(np.asarray(question, np.int32))
            logits = np.asarray(self._kept.get_output("logits"), np.float32)  # [1, Q or 1, V]
            rows.append(logits.reshape(-1, logits.shape[-1])[-1])
            self._kept.rewind_to(len(self._frame.prefix))
        return np.stack(rows)

    def _separate(self, frame: Frame) -> Found:
        stages: dict[str, float] = {}
        for question in frame.questions:
            prompt = [*frame.prefix, *question]
            generator = self._generator(len(prompt) + frame.tokens)
            _read(generator, prompt, "prefill", stages)
            _generate(generator, frame.tokens, stages)
        return _found(stages, len(frame.questions) * (frame.tokens - 1))

    def _keep(self, frame: Frame) -> Found:
        stages: dict[str, float] = {}
        self._kept = self._generator(len(frame.prefix) + max(map(len, frame.questions)) + frame.tokens)
        _read(self._kept, frame.prefix, "prefill", stages)
        for question in frame.questions:
            self._ask(question, frame.tokens, stages)
        return _found(stages, len(frame.questions) * (frame.tokens - 1))

    def _ask(self, question: Sequence[int], tokens: int, stages: dict[str, float]) -> None:
        assert self._frame is not None
        _read(self._kept, question, "questions", stages)
        _generate(self._kept, tokens, stages)
        self._kept.rewind_to(len(self._frame.prefix))

    def _batch(self, frame: Frame) -> Found:
        """Questions as long as the shortest: a padded batch would be another model's business."""
        stages: dict[str, float] = {}
        length = min(map(len, frame.questions))
        rows = [[*frame.prefix, *question[-length:]] for question in frame.questions]
        generator = self._generator(len(rows[0]) + frame.tokens, batch_size=len(rows))
        _read(generator, [token for row in rows for token in row], "prefill", stages)
        _generate(generator, frame.tokens, stages)
        return _found(stages, frame.tokens - 1)

    def _generator(self, length: int, batch_size: int = 1) -> Any:
        parameters = self._genai.GeneratorParams(self._model)
        length += SLACK
        options = {"max_length": length, "min_length": length, "batch_size": batch_size}  # min: no end before
        parameters.set_search_options(**options, do_sample=False, past_present_share_buffer=True)
        return self._genai.Generator(self._model, parameters)


def _read(generator: Any, tokens: Sequence[int], stage: str, stages: dict[str, float]) -> None:
    started_s = time.perf_counter()
    generator.append_tokens(np.asarray(tokens, np.int32))
    stages[stage] = stages.get(stage, 0.0) + time.perf_counter() - started_s


def _generate(generator: Any, tokens: int, stages: dict[str, float]) -> None:
    """The first token is chosen from logits that are there: tokens - 1 engine calls."""
    started_s = time.perf_counter()
    for _ in range(tokens):
        generator.generate_next_token()
        generator.get_next_tokens()
    stages["decode"] = stages.get("decode", 0.0) + time.perf_counter() - started_s


def _found(stages: dict[str, float], calls: int) -> Found:
    return {"stages": stages, "decode_s": stages["decode"], "steps": calls, "decoded": calls}
