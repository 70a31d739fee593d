"""A checkpoint's curves: forward passes of a few samples at a time, each layer measured as it runs and then forgotten.

Memory holds one batch's attention of text rows to vision columns and one layer's states, not all layers' states and no sample
before. B samples, S positions, L layers, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drivekd.data.batch import IGNORED_LABEL, Batch, Collator
from drivekd.data.packs import single_packs
from drivekd.distill.signals import Places, text_to_vision_places
from drivekd.distill.teachers.features import ImageFeatures
from drivekd.errors import CheckpointError
from drivekd.hf_checkpoint import Checkpoint, load_processor
from drivekd.images import PatchSettings
from drivekd.models import language_model, load_model, num_layers
from drivekd.models.decoder import run_decoder
from drivekd.models.probe import CAPTURE_ATTENTION, MapRequest, capture
from drivekd.processor import Processor
from drivekd.sample import Sample

from .curves import Curves, CurveSums
from .statistics import adjacent_cosine, answer_bins, attention_vectors, label_margins, masked_mean, vision_text_cosine


class MeasuredModel:
    """One checkpoint, loaded in `dtype`. Raises CheckpointError; ConfigError where camera_size_px or tiles do not fit it."""

    def __init__(
        self,
        checkpoint: Path | Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        camera_size_px: tuple[int, int] | None = None,
        tiles: str | None = None,
    ) -> None:
        self.checkpoint = checkpoint = Checkpoint.open(checkpoint)
        self.model = load_model(checkpoint, attention=CAPTURE_ATTENTION, dtype=dtype).eval().requires_grad_(False).to(device)
        self.depth = num_layers(self.model)
        self._device, self._dtype = device, dtype
        processor = load_processor(checkpoint, camera_size_px=camera_size_px, tiles=tiles)
        self._token_grid, self._tiling = token_grid(processor), processor.images.tiling
        self._collate = Collator(processor)
        self._features = ImageFeatures(self.model, self._collate, device, dtype, frozen=True)

    @torch.no_grad()
    def curves(
        self, samples: Sequence[Sample], *, batch_size: int = 1, on_progress: Callable[[int], None] | None = None
    ) -> Curves:
        """The curves of at least one sample. on_progress gets the number of samples done.

        Raises DataError on a picture that cannot be read, CheckpointError when a value is not finite.
        """
        sums = CurveSums(self.depth)
        packs = single_packs(samples)
        for start in range(0, len(packs), batch_size):
            self._add(sums, self._collate(packs[start : start + batch_size]).to(self._device))
            if on_progress is not None:
                on_progress(sums.num_samples)
        curves = sums.curves()
        self._check(curves)
        return curves

    def _add(self, sums: CurveSums, batch: Batch) -> None:
        places = text_to_vision_places(batch)
        states = _States(batch)
        request = MapRequest(places.rows, places.columns)
        decoder: Any = language_model(self.model)
        with (
            capture(decoder.layers, dict.fromkeys(range(self.depth), request)) as captured,
            _watched(decoder.layers, states.see),
            torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32),
        ):
            hidden = run_decoder(
                self.model,
                batch.input_ids,
                batch.vision_mask,
                self._features(batch),
                batch.attention_mask,
                batch.positions,
            )
            self._add_margins(sums, batch, hidden)
        maps = [captured.attention[layer] for layer in range(self.depth)]
        sums.add_layers(*states.stacked(), self._attention(maps, batch, places))

    def _attention(self, maps: Sequence[Tensor], batch: Batch, places: Places) -> Tensor:
        """[B, L, 256]"""
        counts = [len(images) for images in batch.images]
        return torch.stack([attention_vectors(rows, places.row_mask, counts, self._token_grid, self._tiling) for rows in maps], 1)

    def _add_margins(self, sums: CurveSums, batch: Batch, hidden: Tensor) -> None:
        """The state before an answer token predicts it. hidden [B, S, D]."""
        answer = batch.labels[:, 1:] != IGNORED_LABEL  # [B, S - 1]
        logits = self.model.lm_head(hidden[:, :-1][answer])  # [M, C]
        sums.add_margins(label_margins(logits, batch.labels[:, 1:][answer]), answer_bins(answer))

    def _check(self, curves: Curves) -> None:
        for name, values in curves.to_json().items():
            for index, value in enumerate(values):
                if value is not None and not math.isfinite(value):
                    raise CheckpointError(
                        f"{self.checkpoint.path}: {name}[{index}] is {value}; the model's states or logits are not finite. "
                        "Use a sound checkpoint, or training.precision = fp32 where bf16 overflows"
                    )


def token_grid(processor: Processor) -> tuple[int, int]:
    """Rows and columns of vision tokens of one tile; InternVL's are square."""
    if isinstance(processor.images, PatchSettings):
        return processor.images.token_grid
    tokens = processor.chat.tokens_per_image // processor.images.tiling.num_tiles
    side = math.isqrt(tokens)
    assert side * side == tokens
    return side, side


@dataclass
class _States:
    """What is kept of the layers' states while a batch runs, layer after layer."""

    batch: Batch
    adjacent: list[Tensor] = field(default_factory=list)  # [B] each
    vision_text: list[Tensor] = field(default_factory=list)  # [B] each
    text_states: list[Tensor] = field(default_factory=list)  # [B, D] each

    def see(self, before: Tensor, after: Tensor) -> None:
        tokens, vision = self.batch.token_mask, self.batch.vision_mask
        text = tokens & ~vision
        self.adjacent.append(adjacent_cosine(before, after, tokens))
        self.vision_text.append(vision_text_cosine(after, vision, text))
        self.text_states.append(masked_mean(after, text))

    def stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L], [B, L], [B, L, D]"""
        return torch.stack(self.adjacent, 1), torch.stack(self.vision_text, 1), torch.stack(self.text_states, 1)


@contextmanager
def _watched(layers: nn.ModuleList, see: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Within the block `see` gets each layer's input and output, [B, S, D] both, in the layers' order."""
    handles = [layer.register_forward_hook(partial(_show, see)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _show(see: Callable[[Tensor, Tensor], None], module: nn.Module, inputs: Any, output: Any) -> None:
    see(inputs[0], output if isinstance(output, Tensor) else output[0])
