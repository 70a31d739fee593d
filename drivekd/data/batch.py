"""Packs to tensors. B = packs, S = tokens of the longest, N = samples (questions), A = position axes (1; 3 for mRoPE).

A pack is  prefix (system prompt, images) + question 1 + answer 1 + question 2 + answer 2 ...; positions restart behind the prefix
for every question, and a question attends to the prefix and to itself alone, so each sample is computed exactly as on its own.
Padding is on the right; padded positions are neither text nor vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drivekd.data.forced_tokens import ForcedTokens, is_structured
from drivekd.data.packs import Pack
from drivekd.errors import DataError, UsageError
from drivekd.images import RGBImage, load_image
from drivekd.processor import Processor
from drivekd.sample import CAPABILITIES, Sample

IGNORED_LABEL = -100
PADDING, PREFIX = -1, 0  # values of Batch.segment; questions are 1, 2, ...


@dataclass(frozen=True)
class Batch:
    """Everything that a student or teacher reads of B packs.

    input_ids, labels [B, S] int64 (labels: IGNORED_LABEL outside the answers, and in them where a grammar writes, see
    forced_tokens.py); segment [B, S] int64: PADDING, PREFIX, or the number of the question; positions [A, B, S] int64;
    vision_mask, prompt_mask [B, S] bool (prompt: all but answers and padding); pack, question [N] int64: where each sample lies
    (row, segment); capability [N] int64, an index into CAPABILITIES; labelled [N] bool; images: each pack's pictures in order;
    samples: the N records.
    """

    input_ids: Tensor
    labels: Tensor
    segment: Tensor
    positions: Tensor
    vision_mask: Tensor
    prompt_mask: Tensor
    pack: Tensor
    question: Tensor
    capability: Tensor
    labelled: Tensor
    images: tuple[tuple[Path, ...], ...]
    samples: tuple[Sample, ...]

    @property
    def token_mask(self) -> Tensor:
        """[B, S] bool: everything but padding."""
        return self.segment != PADDING

    @property
    def num_tokens(self) -> int:
        """Of all packs, padding left out."""
        return int(self.token_mask.sum())

    @property
    def attention_mask(self) -> Tensor | None:
        """[B, 1, S, S] bool, true = may attend; None where plain causal attention says the same (one question a pack)."""
        if len(self.samples) == len(self.input_ids):
            return None  # padding is on the right: no real token sees it
        same = self.segment[:, :, None] == self.segment[:, None, :]
        visible = (same | (self.segment[:, None, :] == PREFIX)).tril()
        return visible[:, None]

    def to(self, device: torch.device) -> Batch:
        """A copy whose tensors lie on the device; pictures and samples are shared."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def whole(self) -> View:
        """The view of every sample."""
        rows = torch.arange(len(self.input_ids), device=self.input_ids.device)
        return View(self, rows, torch.arange(self.input_ids.shape[1], device=rows.device).expand(len(rows), -1), True)

    def select(self, samples: Sequence[int]) -> View:
        """The view of some samples: their questions behind their packs' prefixes."""
        if len(samples) == len(self.samples):
            return self.whole()
        index = torch.tensor(samples, device=self.pack.device)
        rows, pack = torch.unique(self.pack[index], return_inverse=True)  # [b], [n]
        kept = self.segment[rows] == PREFIX  # [b, S]
        question = torch.zeros_like(index)
        segment = torch.where(kept, PREFIX, PADDING)
        for n, (row, old) in enumerate(zip(pack.tolist(), self.question[index].tolist(), strict=True)):
            question[n] = int((pack[:n] == row).sum()) + 1
            segment[row][self.segment[rows[row]] == old] = question[n]
        length = int((segment != PADDING).sum(1).max())
        positions = (segment == PADDING).sort(dim=1, stable=True).indices[:, :length]  # kept tokens first, in order

        def taken(values: Tensor) -> Tensor:
            return values[rows].gather(1, positions)

        segment = segment.gather(1, positions)
        real = segment != PADDING
        part = Batch(
            input_ids=taken(self.input_ids),
            labels=taken(self.labels).where(real, IGNORED_LABEL),
            segment=segment,
            positions=torch.stack([taken(axis) for axis in self.positions]),
            vision_mask=taken(self.vision_mask) & real,
            prompt_mask=taken(self.prompt_mask) & real,
            pack=pack,
            question=question,
            capability=self.capability[index],
            labelled=self.labelled[index],
            images=tuple(self.images[row] for row in rows.tolist()),
            samples=tuple(self.samples[i] for i in samples),
        )
        return View(part, rows, positions, False)


@dataclass(frozen=True)
class View:
    """Some samples of a batch as a batch of their own. rows [b], positions [b, s]: where packs and tokens lie in the original."""

    batch: Batch
    rows: Tensor
    positions: Tensor
    is_whole: bool


class Collator:
    """Makes Batches of packs with one processor, and pixels of pictures; resized pictures are kept, bounded by `cache_bytes`."""

    def __init__(self, processor: Processor, *, cache_bytes: int = 512 << 20) -> None:
        self.processor = processor
        height, width, _ = processor.resize(np.zeros((32, 32, 3), np.uint8)).shape
        self.pictures_kept = max(1, cache_bytes // (3 * height * width))
        self._tile = lru_cache(maxsize=self.pictures_kept)(self._read_tile)
        self._prefix = lru_cache(maxsize=16)(self._make_prefix)
        self._forced_tokens = lru_cache(maxsize=1)(lambda: ForcedTokens(processor.prompts))

    def _read_tile(self, path: Path) -> RGBImage:
        return self.processor.resize(load_image(path))

    def _make_prefix(self, num_images: int) -> tuple[list[int], Tensor]:
        """Ids [P] and positions [A, P] of a prompt's prefix."""
        ids = self.processor.prompts.prefix(num_images)
        return ids, torch.from_numpy(np.asarray(self.processor.prefix_positions(ids), np.int64))

    def __call__(self, packs: Sequence[Pack]) -> Batch:
        """Raises DataError naming the record whose text holds a chat marker."""
        rows = [self._row(pack) for pack in packs]
        length = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, fill: int) -> Tensor:
            values = torch.full((len(rows), length), fill, dtype=rows[0][name].dtype)
            for index, row in enumerate(rows):
                values[index, : len(row[name])] = row[name]
            return values

        positions = rows[0]["positions"].new_zeros(len(rows[0]["positions"]), len(rows), length)
        for index, row in enumerate(rows):
            positions[:, index, : row["positions"].shape[1]] = row["positions"]
        input_ids, segment = padded("input_ids", 0), padded("segment", PADDING)
        samples = tuple(sample for pack in packs for sample in pack)
        return Batch(
            input_ids=input_ids,
            labels=padded("labels", IGNORED_LABEL),
            segment=segment,
            positions=positions,
            vision_mask=(input_ids == self.processor.prompts.image_token_id) & (segment == PREFIX),
            prompt_mask=padded("prompt_mask", False),
            pack=torch.tensor([row for row, pack in enumerate(packs) for _ in pack]),
            question=torch.tensor([number for pack in packs for number in range(1, len(pack) + 1)]),
            capability=torch.tensor([CAPABILITIES.index(sample.capability) for sample in samples]),
            labelled=torch.tensor([sample.answer is not None for sample in samples]),
            images=tuple(pack[0].images for pack in packs),
            samples=samples,
        )

    def num_tokens(self, sample: Sample) -> tuple[int, int]:
        """Tokens of the prefix, and of question and answer."""
        prefix, question, answer = self.lengths(sample)
        return prefix, question + answer

    def lengths(self, sample: Sample) -> tuple[int, int, int]:
        """Tokens of the prefix, the question, and the answer with its end of turn; 0 of no answer."""
        question, answer = self._question_ids(sample)
        return len(self._prefix(len(sample.images))[0]), len(question), len(answer)

    def _row(self, pack: Pack) -> dict[str, Tensor]:
        """One pack's tensors, unpadded."""
        prefix, prefix_positions = self._prefix(len(pack[0].images))
        ids, labels, segment, prompt = [*prefix], [IGNORED_LABEL] * len(prefix), [PREFIX] * len(prefix), [True] * len(prefix)
        positions = [prefix_positions]
        for number, sample in enumerate(pack, 1):
            question, answer = self._question_ids(sample)
            own = len(question) + len(answer)
            ids += question + answer
            labels += [IGNORED_LABEL] * len(question) + self._supervised(sample, answer)
            segment += [number] * own
            prompt += [True] * len(question) + [False] * len(answer)
            positions.append((prefix_positions.max() + 1 + torch.arange(own)).expand(len(prefix_positions), -1))
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "segment": torch.tensor(segment),
            "prompt_mask": torch.tensor(prompt),
            "positions": torch.cat(positions, 1),
        }

    def _supervised(self, sample: Sample, answer: list[int]) -> list[int]:
        """The answer's labels: all of a text, of JSON what no grammar writes."""
        if not is_structured(sample):
            return answer
        forced = self._forced_tokens().of(sample, answer)
        return [IGNORED_LABEL if written else token for token, written in zip(answer, forced, strict=True)]

    def _question_ids(self, sample: Sample) -> tuple[list[int], list[int]]:
        prompts = self.processor.prompts
        try:
            return prompts.suffix(sample.question), [] if sample.answer is None else prompts.answer(sample.answer)
        except UsageError as error:
            advice = (
                "; data.grounding_tokens lists those to learn; drivekd data validate --checkpoint names all, --fix drops them"
            )
            raise DataError(f"{sample.source}: {error}{advice}") from error

    def pixel_values(self, paths: Sequence[Path], source: str) -> Tensor:
        """[N, *pixel_shape] of picture files. Raises DataError that names `source` and the file."""
        try:
            tiles = [self.processor.normalize(self._tile(path)) for path in paths]
        except DataError as error:
            raise DataError(f"{source}: images: {error}") from error
        return torch.from_numpy(np.stack(tiles))
