"""A bundle at work: images and questions in, answers out; and the face that sessions elsewhere share with it.

Session works here, WorkerSession in a process of its own, Ladder on rungs: all are an AnswerSession.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import numpy as np

from drivekd.contract import Variable
from drivekd.errors import RunnerError, UsageError
from drivekd.images import RGBImage
from drivekd.runtime.answers.answer import Answer, answer_fields, says_nothing
from drivekd.runtime.answers.ask import Answering, Ask
from drivekd.runtime.answers.confidence import CALIBRATION_FILE, Calibration, calibration_from_bytes, entry_name
from drivekd.runtime.answers.cut_answers import structured_answer
from drivekd.runtime.answers.deadline import Deadline, DeadlineExpiredError
from drivekd.runtime.answers.grammar import Grammars
from drivekd.runtime.answers.schemas import SCHEMAS_FILE, Schema, default_schemas, schemas_from_bytes
from drivekd.runtime.answers.turn import Turn
from drivekd.runtime.bundle.manifest import Manifest
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.meters.health import Health, HealthSnapshot

from .cameras import Refresh
from .generation import Generation, Wanted
from .model import StartedModel
from .sampling import Sampler
from .triad import Branch, opened


class Session(Answering):
    """Answers about frames. One thread at a time: a second one gets a UsageError.

    capabilities, cameras, variables: what the bundle was exported with. dialect: how its decoder keeps K/V. schemas: of
    structured answers, by capability; the bundle's own, else drivekd's. timings_ms: stages of the last call, in ms: vision,
    prefill (system prompt + images), questions, decode, one entry per capability (start of the call to its end), ttft, total.
    counts: of the last call: images_encoded, tokens_prefilled, engine_calls (of the decoder), tokens_forced (by a grammar).
    model: what it is built on, for those who look below answers.

        >>> from drivekd.runtime import load_bundle
        >>> with load_bundle(bundle) as session:
        ...     for question in ("Is the road wet?", "Is a van near?"):  # about one frame: its image is read once
        ...         answer = session.answer_question({"CAM_FRONT": image}, question, max_new_tokens=2)
        ...         answer.capability, session.counts["images_encoded"]
        ('question', 1)
        ('question', 0)
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str = "ort-cpu",
        threads: int | None = None,
        dialect: str | None = None,
        refresh_hz: Mapping[str, float] | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.bundle_digest = bundle.digest
        self.backend = backend
        self.manifest = manifest
        self.capabilities: tuple[str, ...] = tuple(manifest.prompts)
        self.cameras = manifest.cameras
        self.variables = dict(manifest.variables)
        self.timings_ms: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.schemas = _schemas(bundle)
        self._calibration = _calibration(bundle)
        self._refresh = Refresh(refresh_hz or {}, self.cameras)
        self._health = Health(backend)
        tokenizer = bundle.files["tokenizer.json"]
        self._grammars = Grammars(tokenizer, manifest.model.vocab_size, manifest.generation.end_of_turn_id, self.schemas)
        self.model = model = StartedModel(bundle, backend=backend, threads=threads, dialect=dialect)
        self.dialect = model.dialect
        self._generation = Generation(
            model.decoder, model.prefix, model.prompts, manifest.generation.end_of_turn_id, len(manifest.prompts)
        )
        self._closed = False
        self._turn = Turn()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines; a second call does nothing."""
        self._closed = True
        self.model.close()

    def warm_up(self) -> None:
        """Compile the grammars of structured answers now, not within the first frame. Raises RunnerError."""
        self._grammars.warm_up()

    def health(self) -> HealthSnapshot:
        """Counters, latencies by stage and memory since the session began."""
        return self._health.snapshot()

    def answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        """As Answering says. One batch: the prefix is read once, the questions branch off."""
        with self._turn:
            return self._answer_ask(images, ask)

    def _answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        if self._closed:
            raise RunnerError("the session is closed; load the bundle again")
        deadline = Deadline(ask.deadline_ms, ask.cancelled)
        self.timings_ms, self.counts = {}, {}
        questions = ask.questions(
            self.manifest.prompts, self.variables, structured_instruction=self.manifest.structured_instruction
        )
        limits = tuple(ask.limits(self.manifest, questions).values())
        branches = [opened(self._grammars.constraint(name, tuple(images)) if ask.structured else None) for name in questions]
        ids = {
            name: [*self.model.prompts.suffix(text), *state.tokens]
            for (name, text), state in zip(questions.items(), branches, strict=True)
        }
        wanted = Wanted(ids, branches, limits, Sampler(ask.sampling, tuple(ids)), deadline, ask.on_text)
        self._check_length(len(images), wanted)
        answers = self._answers(images, wanted)
        self.timings_ms["total"] = deadline.elapsed_ms()
        self._health.answered(answers.values(), self.timings_ms)
        return answers

    def answer_question(self, images: Mapping[str, RGBImage], question: str, *, max_new_tokens: int | None = None) -> Answer:
        """One free question. The images' K/V is kept: further questions about the same frame read no image again."""
        return self.answer(images, question=question, max_new_tokens=max_new_tokens)["question"]

    def _check_length(self, num_images: int, wanted: Wanted) -> None:
        limit = self.manifest.model.max_positions
        longest = self._generation.num_tokens(num_images, wanted)
        if longest > limit:
            raise UsageError(
                f"{num_images} images, a question and up to {max(wanted.limits)} new tokens make {longest} tokens; "
                f"the model has {limit} positions. Ask with fewer cameras, a shorter question or fewer tokens."
            )

    def _tiles(self, images: Mapping[str, RGBImage], wanted: Wanted) -> dict[str, RGBImage] | None:
        """None when the deadline came before the last was made."""
        try:
            tiles = self.model.tiles(images, wanted.deadline)
        except DeadlineExpiredError:
            return None
        return self._refresh.taken(tiles)

    def _answers(self, images: Mapping[str, RGBImage], wanted: Wanted) -> dict[str, Answer]:
        try:
            self._generation.run(self._tiles(images, wanted), wanted)
            ended = dict(zip(wanted.ids, wanted.branches, strict=True))
            self.timings_ms = self._generation.timings_ms | {name: state.finished_ms for name, state in ended.items()}
            self.counts = self._generation.counts
            return {name: self._answer(name, state) for name, state in ended.items()}
        except (RunnerError, MemoryError) as error:
            self.model.prefix.forget()  # what a failing engine left behind is not worth a guess
            self._health.failed(str(error) or "out of memory")
            if isinstance(error, RunnerError):
                raise
            raise RunnerError(f"out of memory while answering a frame ({error})") from error

    def _answer(self, capability: str, state: Branch) -> Answer:
        text, reason = self.model.prompts.decode(state.tokens), state.finish_reason
        assert reason is not None
        structured, complete = None, reason == "stop"
        if state.constraint is not None:
            text, structured, complete = structured_answer(state.constraint.schema, text, reason)
        mean_logprob = float(np.mean(state.logprobs)) if state.logprobs else 0.0
        entry = self._calibration.get(entry_name(capability, structured=structured is not None))
        calibration = entry if state.logprobs else None
        confidence = None if calibration is None else calibration.confidence(mean_logprob)
        return Answer(
            capability=capability,
            text=text,
            fields=answer_fields(text) if structured is None else {},
            structured=structured,
            valid=reason == "stop" and not says_nothing(text if structured is None else structured),
            complete=complete,
            finish_reason=reason,
            tokens=len(state.tokens),
            mean_logprob=mean_logprob,
            confidence=confidence,
            calibrated=calibration is not None,
            abstained=calibration is not None and confidence is not None and confidence < calibration.threshold,
            backend=self.backend,
            timings_ms={name: self.timings_ms[name] for name in ("ttft",) if name in self.timings_ms}
            | {"total": state.finished_ms},
        )


def _schemas(bundle: Bundle) -> dict[str, Schema]:
    data = bundle.files.get(SCHEMAS_FILE)
    if data is None:
        return default_schemas(bundle.manifest.cameras)
    return schemas_from_bytes(data, str(bundle.path))


def _calibration(bundle: Bundle) -> dict[str, Calibration]:
    data = bundle.files.get(CALIBRATION_FILE)
    return {} if data is None else calibration_from_bytes(data, str(bundle.path))


class AnswerSession(Answering, Protocol):
    """What a caller may rely on, whichever session answers; Session says what each of these means.

    capabilities, cameras, variables, manifest, bundle_digest: of its bundle. backend: the engine that answers. health():
    counters and latencies so far. close(): free the engines; a second call does nothing.
    """

    timings_ms: dict[str, float]
    counts: dict[str, int]

    @property
    def capabilities(self) -> tuple[str, ...]: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def variables(self) -> dict[str, Variable]: ...
    @property
    def bundle_digest(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...

    def health(self) -> HealthSnapshot: ...

    def close(self) -> None: ...
