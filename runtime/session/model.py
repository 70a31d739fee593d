"""A verified bundle's model, started: its vision and its decoder, its prompts, and what reads a frame's prefix with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from drivekd.chat import PromptEncoder
from drivekd.errors import BundleError, CheckpointError
from drivekd.host_memory import huge_pages, return_freed_memory
from drivekd.images import PatchSettings, RGBImage
from drivekd.processor import Processor, parse_tokenizer
from drivekd.runtime.answers.ask import Ask
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.decoder.concat import ConcatDecoder
from drivekd.runtime.decoder.embedding import EMBEDDING_FILE, embedding_from_bytes
from drivekd.runtime.decoder.gqa import GqaDecoder
from drivekd.runtime.decoder.protocol import Cache, Decoder
from drivekd.runtime.engine.backends import choose_dialect, open_runner
from drivekd.runtime.engine.ort import OrtRunner
from drivekd.runtime.engine.runner import Runner

from .cameras import camera_tiles
from .prefix import PrefixReader
from .triad import forced_logits


class StartedModel:
    """What a session is built on, and what parity is measured on. Free it with close(), or as a context manager.

    manifest, bundle_digest: of its bundle. backend: the engine that runs it. dialect: how its decoder keeps K/V. prompts: texts
    to token ids and back. vision, decoder: its graphs at work. prefix: reads a frame with both.
    """

    def __init__(
        self, bundle: Bundle, *, backend: str = "ort-cpu", threads: int | None = None, dialect: str | None = None
    ) -> None:
        """dialect: None = the first of the bundle's that the backend runs. Raises RunnerError, BundleError, UsageError.

        Both engines start first: while one packs its weights it holds them twice, the peak of it all.
        """
        self.manifest = bundle.manifest
        self.bundle_digest = bundle.digest
        self.backend = backend
        self.dialect = choose_dialect(bundle.manifest, backend, dialect, str(bundle.path))
        with ExitStack() as started, huge_pages():  # when the second engine fails, the first is freed
            runner = started.enter_context(open_runner(bundle, f"decoder.{self.dialect}", backend, threads))
            self.vision = started.enter_context(open_runner(bundle, "vision", backend, threads))
            processor = bundle_processor(bundle)
            self.prompts: PromptEncoder = processor.prompts
            self.decoder: Decoder = _decoder(bundle, self.dialect, runner)
            self.prefix = PrefixReader(self.vision, self.decoder, processor)
            self._started = started.pop_all()
        return_freed_memory()  # of the tokenizer too, and what huge_pages made whole

    def __enter__(self) -> StartedModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """A second call does nothing."""
        self._started.close()

    def tiles(self, images: Mapping[str, RGBImage], deadline: Deadline | None = None) -> dict[str, RGBImage]:
        """What it looks at of the images [H, W, 3] by camera, in the bundle's camera order. Raises as camera_tiles does."""
        return camera_tiles(images, self.manifest.cameras, self.manifest.images, deadline)

    def questions(self) -> dict[str, str]:
        """The bundle's question of each capability, about its variables' default values."""
        return Ask().questions(self.manifest.prompts, self.manifest.variables)

    def prompt_ids(self, num_images: int, question: str) -> list[int]:
        """Token ids of a whole prompt: prefix and literal question."""
        return [*self.prompts.prefix(num_images), *self.prompts.suffix(question)]

    def read(self, tiles: Mapping[str, RGBImage] | Sequence[RGBImage]) -> Cache:
        """As PrefixReader.read, however long it takes."""
        prefix = self.prefix.read(tiles, Deadline())
        assert prefix is not None, "this deadline does not end"
        return prefix

    def forced_logits(
        self, tiles: Mapping[str, RGBImage] | Sequence[RGBImage], questions: Sequence[str], tokens: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Logits [N, B, V] with which the B literal questions, as one batch, predict the given answer tokens [N, B]."""
        return forced_logits(self.decoder, self.read(tiles), [self.prompts.suffix(question) for question in questions], tokens)


def bundle_processor(bundle: Bundle) -> Processor:
    """Images and text to model inputs, as training did it. Raises BundleError."""
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


def _decoder(bundle: Bundle, dialect: str, runner: Runner) -> Decoder:
    manifest, spec = bundle.manifest, bundle.manifest.graphs[f"decoder.{dialect}"]
    table = embedding_from_bytes(bundle.files[EMBEDDING_FILE], manifest.embedding, manifest.model, str(bundle.path))
    if dialect == "gqa":
        assert isinstance(runner, OrtRunner), "choose_dialect gives other engines the dialect concat"
        return GqaDecoder(runner, table, manifest.model, spec)
    assert dialect == "concat", "choose_dialect knows no other"
    return ConcatDecoder(runner, table, manifest.model, spec)
