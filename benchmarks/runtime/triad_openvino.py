"""OpenVINO GenAI answers three questions about one prompt: from the start each, with its prefix cache, or as one batch behind it.

The model is the language model as optimum-intel saves it (decode_peer.py's save_language_model makes what that takes):

    optimum-cli export openvino --model DIR/language --task text-generation-with-past --weight-format int4 --sym --ratio 1.0 \
        --group-size 32 OUT

Its environment: torch (a CPU build, without torchvision), optimum-intel, nncf, openvino-genai; tried with 2.13.0, 2.2.0, 3.4.0
and 2026.4.1. Embedding and head stay at 8 bits there, and K/V is kept at 8 bits: OpenVINO's own defaults on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.runtime.triad_frame import Found, Frame

CACHE_GB = 1  # of K/V; a frame with three answers takes a tenth of it


class OpenVinoFrames:
    """Modes: "separate", one plain pipeline, three times; "kept" and "batch", continuous batching with prefix caching, the
    questions one by one or all at once behind a prefix that is read first."""

    packages: tuple[str, ...] = ("openvino-genai", "openvino", "numpy")

    def __init__(self, folder: Path, threads: int) -> None:
        self._openvino, self._genai = import_module("openvino"), import_module("openvino_genai")
        self._folder, self._options = str(folder), {"INFERENCE_NUM_THREADS": threads}
        self._pipelines: dict[str, Any] = {}
        self._frame: Frame | None = None

    def frame(self, frame: Frame, mode: str) -> Found:
        self._frame = frame
        prompts = [[*frame.prefix, *question] for question in frame.questions]
        if mode == "separate":
            return self._timed({"decode": prompts}, frame.tokens, mode, one_by_one=True)
        return self._timed({"prefill": [frame.prefix], "decode": prompts}, frame.tokens, mode, one_by_one=mode == "kept")

    def answer(self, question: int, tokens: int, mode: str) -> Found:
        """The question's own reading is in its seconds: the pipeline does not tell them apart."""
        assert self._frame is not None
        prompt = [*self._frame.prefix, *self._frame.questions[question]]
        return self._timed({"decode": [prompt]}, tokens, "kept", one_by_one=True)

    def logits(self) -> NDArray[np.float32]:
        raise NotImplementedError("the pipeline gives no logits")

    def _timed(self, stages: dict[str, list[list[int]]], tokens: int, mode: str, *, one_by_one: bool) -> Found:
        pipeline = self._pipeline(mode)
        found: dict[str, float] = {}
        for name, prompts in stages.items():
            started_s = time.perf_counter()
            for part in ([prompt] for prompt in prompts) if one_by_one else [prompts]:
                self._generate(pipeline, part, 1 if name == "prefill" else tokens)
            found[name] = time.perf_counter() - started_s
        return {"stages": found, "decode_s": found["decode"], "steps": tokens - 1, "decoded": tokens - 1}

    def _generate(self, pipeline: Any, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        config = self._genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True)
        inputs = [self._openvino.Tensor(np.asarray([prompt], np.int64)) for prompt in prompts]
        if isinstance(pipeline, self._genai.LLMPipeline):
            (one,) = inputs
            pipeline.generate(one, config)
        else:
            pipeline.generate(inputs, [config] * len(inputs))

    def _pipeline(self, mode: str) -> Any:
        """Loaded when first asked for: each holds the weights."""
        kind = "separate" if mode == "separate" else "kept"
        if kind not in self._pipelines:
            self._pipelines[kind] = self._plain() if kind == "separate" else self._caching()
        return self._pipelines[kind]

    def _plain(self) -> Any:
        return self._genai.LLMPipeline(self._folder, "CPU", ATTENTION_BACKEND="SDPA", **self._options)

    def _caching(self) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = CACHE_GB
        return self._genai.ContinuousBatchingPipeline(self._folder, scheduler, "CPU", self._options)
