"""A verified bundle's engines, started and put together: vision and decoder, and what reads a frame's prefix with them."""

from __future__ import annotations

from contextlib import ExitStack

from drivekd.chat import PromptEncoder
from drivekd.errors import BundleError, CheckpointError
from drivekd.host_memory import huge_pages, return_freed_memory
from drivekd.images import PatchSettings
from drivekd.processor import Processor, parse_tokenizer
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.decoder.concat import ConcatDecoder
from drivekd.runtime.decoder.embedding import EMBEDDING_FILE, embedding_from_bytes
from drivekd.runtime.decoder.gqa import GqaDecoder
from drivekd.runtime.decoder.protocol import Decoder
from drivekd.runtime.engine.backends import open_runner
from drivekd.runtime.engine.ort import OrtRunner
from drivekd.runtime.engine.runner import Runner

from .prefix import PrefixReader


class Engines:
    """vision, decoder and prefix at work; processor: images and text to their inputs. Free them with close()."""

    def __init__(self, bundle: Bundle, *, backend: str, threads: int | None, dialect: str) -> None:
        """Raises RunnerError, BundleError.

        Both engines start first: while one packs its weights it holds them twice, the peak of it all.
        """
        with ExitStack() as started, huge_pages():  # when the second engine fails, the first is freed
            runner = started.enter_context(open_runner(bundle, f"decoder.{dialect}", backend, threads))
            self.vision = started.enter_context(open_runner(bundle, "vision", backend, threads))
            self.processor = bundle_processor(bundle)
            self.decoder: Decoder = _decoder(bundle, dialect, runner)
            self.prefix = PrefixReader(self.vision, self.decoder, self.processor)
            self._started = started.pop_all()
        return_freed_memory()  # of the tokenizer too, and what huge_pages made whole

    def close(self) -> None:
        """A second call does nothing."""
        self._started.close()


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
