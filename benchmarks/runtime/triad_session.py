"""A Session on frames whose images are already encoded, with grammar, streaming and deadline on.

Vision is replaced by rows of the embedding: a frame is then the same text to a session and to a peer that has no vision, and
their logits can be compared. All else is the session that rides in the car. Its seconds have the pictures' preparation in them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.runtime.triad_forced import EveryToken, say, texts
from benchmarks.runtime.triad_frame import Found, Frame
from drivekd.images import RGBImage
from drivekd.runtime import load_bundle
from drivekd.runtime.answers.grammar import Constraint
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.engine import ort
from drivekd.runtime.session.session import Session
from drivekd.runtime.session.triad import branch, opened

FAR_MS = 1e7  # a deadline that is asked at every call and never comes
STAGES = ("vision", "prefill", "questions", "decode")


@dataclass(frozen=True)
class Given:
    """What an engine that gave this array would return."""

    array: NDArray[np.float32]

    def numpy(self) -> NDArray[np.float32]:
        return self.array

    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass(frozen=True)
class Call:
    """One engine call: when it began, and what it took, on the clock and in CPU seconds of the calling thread."""

    start_s: float
    seconds: float
    start_cpu_s: float
    cpu_s: float


class EngineClock:
    """Every engine call of this process. Its own cost is some 0.5 us a call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        for owner, name in ((ort.BoundGraph, "run"), (ort.OrtRunner, "infer")):
            setattr(owner, name, self._timed(getattr(owner, name)))

    def since(self, started_s: float) -> list[Call]:
        return [call for call in self.calls if call.start_s >= started_s]

    def _timed(self, engine: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start_s, start_cpu_s = time.perf_counter(), time.thread_time()
            try:
                return engine(*args, **kwargs)
            finally:
                cpu_s, seconds = time.thread_time() - start_cpu_s, time.perf_counter() - start_s
                self.calls.append(Call(start_s, seconds, start_cpu_s, cpu_s))

        return timed


def _engine(calls: Sequence[Call]) -> Found:
    """What the calls of a decoding took. around_cpu_s: this thread's from the first of them until now, outside the engine; others
    on the machine do not move it."""
    if not calls:
        return {"steps": 0, "engine_s": 0.0, "around_cpu_s": 0.0}
    around_cpu_s = time.thread_time() - calls[0].start_cpu_s - sum(call.cpu_s for call in calls)
    return {"steps": len(calls), "engine_s": sum(call.seconds for call in calls), "around_cpu_s": around_cpu_s}


class SessionFrames:
    """Modes: "free" text and "structured" answers, both with streaming and deadline.

    encoded: images come as rows of the embedding; otherwise as pictures that the vision graph reads.
    """

    packages: tuple[str, ...] = ("onnxruntime", "numpy", "llguidance")

    def __init__(self, folder: Path, threads: int, *, encoded: bool = True) -> None:
        self._clock = EngineClock()
        self._session: Session = load_bundle(folder, threads=threads, gate=False)  # the gate is start.py's matter
        self._images: dict[str, RGBImage] = {}
        self._content: list[list[int]] = []
        self._embeds: deque[NDArray[np.float32]] = deque()
        if encoded:
            self._session.model.vision.infer = self._next_embeds  # type: ignore[method-assign]
        self._encoded = encoded
        self._grammars = self._session._grammars
        self._openings = {name: len(self._grammars.constraint(name).opening()) for name in self._session.capabilities}

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.packages}

    def describe(self, num_images: int) -> Found:
        """Ids of prefix and questions, and the id that stands for an image's tokens."""
        prompts = self._session.model.prompts
        return {
            "prefix": prompts.prefix(num_images),
            "image_token_id": prompts.image_token_id,
            "questions": self._questions(),
        }

    def frame(self, frame: Frame, mode: str) -> Found:
        self._show(frame.content)
        return self._answers(self._session.capabilities, frame.tokens, mode)

    def answer(self, question: int, tokens: int, mode: str) -> Found:
        return self._answers(self._session.capabilities[question : question + 1], tokens, mode)

    def read(self, content: Sequence[Sequence[int]]) -> Found:
        """A frame of these images and one token of one answer: vision, prefill and time to first token."""
        self._show(content)
        found = self._answers(self._session.capabilities[:1], 1, "free")
        return found | {"ttft_ms": self._session.timings_ms["ttft"]}

    def typical(self, skipping: bool) -> Found:
        """Written answers about the last frame, as one batch. Not skipping: a forced token costs an engine call, too."""
        session = self._session
        constraints = [self._grammars.constraint(name) for name in session.capabilities]
        branches = [opened(one if skipping else cast(Constraint, EveryToken(one))) for one in constraints]
        prefix, stop_id = self._prefix(), session.manifest.generation.end_of_turn_id
        self._clock.calls.clear()
        scripts, tokenizer = texts(session.capabilities, session.cameras), session.model.prompts.tokenizer
        started_s = say(session.model.decoder, prefix, self._questions(), branches, scripts, tokenizer, stop_id)
        decode_s, engine = time.perf_counter() - started_s, _engine(self._clock.since(started_s))
        lengths = {"lengths": [len(state.tokens) for state in branches], "forced": [state.forced for state in branches]}
        return {"decode_s": decode_s, **engine, **lengths}

    def logits(self) -> NDArray[np.float32]:
        return branch(self._session.model.decoder, self._prefix(), self._questions(), room=1)[0].copy()

    def _answers(self, capabilities: Sequence[str], tokens: int, mode: str) -> Found:
        pieces: list[str] = []
        self._clock.calls.clear()
        started_s = time.perf_counter()
        answers = self._session.answer(
            self._images,
            capabilities=capabilities,
            max_new_tokens=tokens,
            structured=mode == "structured",
            deadline_ms=FAR_MS,
            on_text=lambda _, piece: pieces.append(piece),
        )
        timings = dict(self._session.timings_ms)
        engine = _engine(self._clock.since(started_s + timings["ttft"] / 1e3))  # a question's own calls began before
        assert not self._embeds, "every image that changed was encoded"
        lengths = {name: answer.tokens for name, answer in answers.items()}
        read = self._openings if mode == "structured" else {}  # with the question, before decoding
        return {
            "stages": {name: timings[name] / 1e3 for name in STAGES if name in timings},
            "decode_s": timings["decode"] / 1e3,
            **engine,
            "decoded": max(length - read.get(name, 0) for name, length in lengths.items()) - 1,
            "lengths": list(lengths.values()),
            "counts": dict(self._session.counts),
        }

    def _show(self, content: Sequence[Sequence[int]]) -> None:
        """The next frame; embeddings for the images in it that are new."""
        self._images = self._pictures(content)
        if self._encoded:
            kept = self._content if len(self._content) == len(content) else [[]] * len(content)
            new = [list(ids) for ids, before in zip(content, kept, strict=True) if list(ids) != before]
            self._embeds = deque(self._session.model.decoder.embed(np.asarray([ids], np.int64)) for ids in new)  # [1, T, D]
        self._content = [list(ids) for ids in content]

    def _pictures(self, content: Sequence[Sequence[int]]) -> dict[str, RGBImage]:
        """A picture for each camera that no other content has."""
        width, height = self._session.manifest.images.tile_px
        names = self._session.cameras or [f"camera_{number}" for number in range(len(content))]
        pictures = [np.random.default_rng(ids).integers(0, 256, (height, width, 3), dtype=np.uint8) for ids in content]
        return dict(zip(names, pictures, strict=False))

    def _next_embeds(self, feeds: Mapping[str, Any]) -> dict[str, Given]:
        return {"image_embeds": Given(self._embeds.popleft())}

    def _prefix(self) -> Cache:
        model = self._session.model
        return model.read(model.tiles(self._images))

    def _questions(self) -> list[list[int]]:
        return [self._session.model.prompts.suffix(text) for text in self._session.model.questions().values()]
