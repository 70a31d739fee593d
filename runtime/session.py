"""A bundle at work: images and questions in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from drivekd.chat import PromptEncoder
from drivekd.errors import BundleError, CheckpointError, RunnerError, UsageError
from drivekd.images import PatchSettings, RGBImage
from drivekd.processor import Processor, parse_tokenizer

from .answer import Answer
from .bundle import Bundle, read_bundle
from .concat import ConcatDecoder
from .deadline import Deadline
from .decoder import DeadlineExpiredError, Decoder, choose_dialect
from .embedding import EMBEDDING_FILE, embedding_from_bytes
from .fields import answer_fields
from .gqa import GqaDecoder
from .ort import OrtRunner, ort_backend
from .platform import check_platform
from .prefix import PrefixReader, camera_tiles
from .questions import fill_template, merged_variables
from .text_stream import TextStream
from .triad import Branch, branch, decode, forced_logits

OnText = Callable[[str, str], None]


def load_bundle(
    path: Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    expect_digest: str | None = None,
    public_key: Path | None = None,
    dialect: str | None = None,
) -> Session:
    """Verify a bundle's every byte, start its engines and return a session (a context manager).

    backend: "auto" (= "ort-cpu"), "ort-cpu" or "ort-cuda". threads: of one engine operator, None = all cores. expect_digest,
    public_key: as read_bundle takes them. dialect: how the decoder keeps K/V, "gqa" or "concat"; None = the first of the bundle's
    that the backend runs.
    Raises BundleError (changed, incomplete, not signed by this key, not for this machine), RunnerError (the engine does not
    start), UsageError (unknown backend or dialect, no key).

        with load_bundle(Path("bundle")) as session:
            answers = session.answer({"CAM_FRONT": image})
    """
    backend = ort_backend(backend)
    bundle = read_bundle(Path(path), expect_digest=expect_digest, public_key=public_key)
    dialect = choose_dialect(bundle.manifest, backend, dialect, str(bundle.path))
    check_platform(bundle, dialect=dialect)
    return Session(bundle, backend=backend, threads=threads, dialect=dialect, use_up=True)


class Session:
    """Answers about frames. One thread at a time.

    capabilities, cameras, variables: what the bundle was exported with. dialect: how its decoder keeps K/V. timings_ms: stages of
    the last call, in ms: vision, prefill (system prompt + images), questions, decode, one entry per capability (start of the call
    to its end), ttft, total.
    Parity and tests reach below it through vision, decoder, prefix and prompts.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str = "ort-cpu",
        threads: int | None = None,
        dialect: str | None = None,
        use_up: bool = False,
    ) -> None:
        """use_up: take files out of `bundle.files` when they have been read, so that not all weights lie in memory twice."""
        manifest = bundle.manifest
        self.bundle_digest = bundle.digest
        self.backend = backend
        self.manifest = manifest
        self.capabilities: tuple[str, ...] = tuple(manifest.prompts)
        self.cameras = manifest.cameras
        self.variables = dict(manifest.variables)
        self.timings_ms: dict[str, float] = {}
        self.dialect = choose_dialect(manifest, backend, dialect, str(bundle.path))
        processor = _processor(bundle)
        self.prompts: PromptEncoder = processor.prompts
        self._engines = ExitStack()
        with ExitStack() as engines:  # when the second engine fails, the first is freed
            runner = engines.enter_context(OrtRunner(bundle, f"decoder.{self.dialect}", backend=backend, threads=threads))
            self.decoder = _decoder(bundle, self.dialect, runner)
            if use_up:  # before the second engine takes memory
                _keep_graph(bundle, "vision")
            self.vision = engines.enter_context(OrtRunner(bundle, "vision", backend=backend, threads=threads))
            self.prefix = PrefixReader(self.vision, self.decoder, processor)
            self._engines = engines.pop_all()
        self._closed = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines; a second call does nothing."""
        self._closed = True
        self._engines.close()

    def answer(
        self,
        images: Mapping[str, RGBImage],
        *,
        capabilities: Sequence[str] | None = None,
        question: str | None = None,
        variables: Mapping[str, object] | None = None,
        deadline_ms: float | None = None,
        on_text: OnText | None = None,
        max_new_tokens: int | None = None,
    ) -> dict[str, Answer]:
        """Answer the bundle's question of each capability, or one free `question`, about one frame.

        images: uint8 RGB [H, W, 3] by camera name. capabilities: None = all. question: asked literally, under the single
        capability named or "question". variables: values for the templates, such as {"ego_speed_mps": 8}. deadline_ms: from
        now; the answers then end with finish_reason "deadline", at most one engine call later. on_text(capability, piece):
        text as it is generated. max_new_tokens: per capability.
        Raises UsageError (unknown capability, camera, variable; chat markers), DataError (a bad image), RunnerError.
        """
        if self._closed:
            raise RunnerError("the session is closed; load the bundle again")
        deadline = Deadline(deadline_ms)
        self.timings_ms = {}
        questions = self._questions(capabilities, question, variables)
        tiles = camera_tiles(images, self.cameras, self.manifest.images)
        limit = self.manifest.generation.max_new_tokens if max_new_tokens is None else max_new_tokens
        ids = {capability: self.prompts.suffix(text) for capability, text in questions.items()}
        self._check_length(len(tiles), ids, limit)
        branches = self._generate(list(tiles.values()), ids, limit, deadline, on_text)
        self.timings_ms["total"] = deadline.elapsed_ms()
        return {name: self._answer(name, state) for name, state in zip(ids, branches, strict=True)}

    def answer_question(self, images: Mapping[str, RGBImage], question: str, *, max_new_tokens: int | None = None) -> Answer:
        """One free question. The images' K/V is kept: further questions about the same frame read no image again."""
        return self.answer(images, question=question, max_new_tokens=max_new_tokens)["question"]

    def forced_logits(
        self, images: Mapping[str, RGBImage], questions: Sequence[str], tokens: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Logits [N, B, V] with which the B literal questions, as one batch, predict the given answer tokens [N, B]."""
        tiles = camera_tiles(images, self.cameras, self.manifest.images)
        prefix = self.prefix.read(list(tiles.values()), Deadline())
        assert prefix is not None
        return forced_logits(self.decoder, prefix, [self.prompts.suffix(question) for question in questions], tokens)

    def image_embeds(self, images: Mapping[str, RGBImage]) -> NDArray[np.float32]:
        """The vision graph's output [N, T, D] for N images, in the bundle's camera order."""
        return self.prefix.image_embeds(list(camera_tiles(images, self.cameras, self.manifest.images).values()))

    def prompt_ids(self, num_images: int, question: str) -> list[int]:
        """Token ids of a whole prompt: prefix and literal question."""
        return [*self.prompts.prefix(num_images), *self.prompts.suffix(question)]

    def questions(self, variables: Mapping[str, object] | None = None) -> dict[str, str]:
        """The bundle's question of each capability with its variables filled in. Raises UsageError."""
        return self._questions(None, None, variables)

    def prefill_logits(self, images: Mapping[str, RGBImage], question: str) -> NDArray[np.float32]:
        """Logits [V] of the first answer token to a literal question."""
        return np.asarray(self.forced_logits(images, [question], np.zeros((1, 1), np.int64))[0, 0], np.float32)

    def _questions(
        self, capabilities: Sequence[str] | None, question: str | None, variables: Mapping[str, object] | None
    ) -> dict[str, str]:
        values = merged_variables(self.variables, variables)
        if question is not None:
            if capabilities is not None and len(capabilities) != 1:
                raise UsageError(f"one free question is asked under one capability, got {len(capabilities)}")
            return {capabilities[0] if capabilities else "question": question}
        names = self.capabilities if capabilities is None else capabilities
        if not names:
            raise UsageError(f"no capability asked; this bundle has: {', '.join(self.capabilities)}")
        if unknown := [name for name in names if name not in self.capabilities]:
            raise UsageError(f"capability {unknown[0]!r} is unknown; this bundle has: {', '.join(self.capabilities)}")
        return {name: fill_template(self.manifest.prompts[name], values) for name in names}

    def _check_length(self, num_images: int, ids: Mapping[str, Sequence[int]], max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; an answer takes at least 1")
        limit = self.manifest.model.max_positions
        longest = self.prefix.num_tokens(num_images) + max(map(len, ids.values())) + max_new_tokens
        if longest > limit:
            raise UsageError(
                f"{num_images} images, the longest question and {max_new_tokens} new tokens make {longest} tokens; "
                f"the model has {limit} positions. Ask with fewer cameras, a shorter question or fewer tokens."
            )

    def _generate(
        self,
        tiles: list[RGBImage],
        ids: Mapping[str, list[int]],
        max_new_tokens: int,
        deadline: Deadline,
        on_text: OnText | None,
    ) -> list[Branch]:
        prefix = self.prefix.read(tiles, deadline)
        self.timings_ms |= self.prefix.timings_ms
        if prefix is None or deadline.expired():
            return _unanswered(len(ids), deadline)
        start_ms = deadline.elapsed_ms()
        try:
            logits, cache = branch(self.decoder, prefix, list(ids.values()), room=max_new_tokens, deadline=deadline)
        except DeadlineExpiredError:
            return _unanswered(len(ids), deadline)
        self.timings_ms |= {"questions": deadline.elapsed_ms() - start_ms, "ttft": deadline.elapsed_ms()}
        branches = decode(
            self.decoder,
            logits,
            cache,
            stop_id=self.manifest.generation.end_of_turn_id,
            max_new_tokens=max_new_tokens,
            deadline=deadline,
            on_token=self._streams(list(ids), on_text),
        )
        self.timings_ms["decode"] = deadline.elapsed_ms() - self.timings_ms["ttft"]
        return branches

    def _streams(self, capabilities: list[str], on_text: OnText | None) -> Callable[[int, Branch], None]:
        if on_text is None:
            return lambda row, state: None
        streams = [TextStream(self.prompts.decode, partial(on_text, name)) for name in capabilities]
        return lambda row, state: streams[row].update(state.tokens, final=state.finish_reason is not None)

    def _answer(self, capability: str, state: Branch) -> Answer:
        text = self.prompts.decode(state.tokens)
        assert state.finish_reason is not None
        self.timings_ms[capability] = state.finished_ms
        timings_ms = {"total": state.finished_ms}
        if "ttft" in self.timings_ms:
            timings_ms["ttft"] = self.timings_ms["ttft"]
        return Answer(
            capability=capability,
            text=text,
            fields=answer_fields(text),
            valid=state.finish_reason == "stop" and bool(text.strip()),
            finish_reason=state.finish_reason,
            tokens=len(state.tokens),
            mean_logprob=float(np.mean(state.logprobs)) if state.logprobs else 0.0,
            timings_ms=timings_ms,
        )


def _unanswered(count: int, deadline: Deadline) -> list[Branch]:
    return [Branch(finish_reason="deadline", finished_ms=deadline.elapsed_ms()) for _ in range(count)]


def _keep_graph(bundle: Bundle, graph: str) -> None:
    """Let all files go but those of one graph."""
    spec = bundle.manifest.graphs[graph]
    for name in set(bundle.files) - {spec.file, spec.data_file}:
        del bundle.files[name]


def _processor(bundle: Bundle) -> Processor:
    """Images and text to model inputs, as training did it."""
    manifest = bundle.manifest
    axes = 3 if isinstance(manifest.images, PatchSettings) else 1
    if manifest.model.rotary_axes != axes:
        raise BundleError(
            f"{bundle.path}: the manifest says {manifest.model.rotary_axes} rotary axes, its image settings belong to {axes}"
        )
    try:
        tokenizer = parse_tokenizer(bundle.files["tokenizer.json"], "tokenizer.json")
        encoder = PromptEncoder(tokenizer, manifest.chat)
    except CheckpointError as error:
        raise BundleError(f"{bundle.path}: {error}") from error
    return Processor(manifest.model.family, manifest.images, manifest.chat, encoder, tokenizer)


def _decoder(bundle: Bundle, dialect: str, runner: OrtRunner) -> Decoder:
    manifest = bundle.manifest
    table = embedding_from_bytes(bundle.files[EMBEDDING_FILE], manifest.embedding, manifest.model, str(bundle.path))
    if dialect == "gqa":
        return GqaDecoder(runner, table, manifest.model, runner.spec)
    assert dialect == "concat", "choose_dialect knows no other"
    return ConcatDecoder(runner, table, manifest.model, runner.spec)
