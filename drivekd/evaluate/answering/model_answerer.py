"""A torch model that answers many questions: each picture goes through the vision tower once, each frame's prefix through the
decoder once, questions in batches.

Frames follow one another as their records do; within a window of some batches those with as many pictures come together, so that
little is padded.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drivekd.answered import Given
from drivekd.camera_order import named_sample
from drivekd.errors import DataError, RunnerError, UsageError
from drivekd.images import PixelValues, RGBImage
from drivekd.models import encode_images
from drivekd.processor import Processor
from drivekd.sample import Sample

from .answerer import OnAnswer
from .budgets import Budgets
from .generation import Branch, generate, read_prefixes
from .pictures import CLEAN, PictureReader, Pictures

if TYPE_CHECKING:
    from drivekd.runtime.answers.grammar import Constraint

_WINDOW_BATCHES = 16  # batches among which frames are put in order; changes speed, not results
_KEPT_BYTES = 1 << 29  # of embeddings of pictures that a later frame may show again

T = TypeVar("T")


class Form(Protocol):
    """What an answer must look like. instruction: behind every question."""

    @property
    def instruction(self) -> str: ...

    def constraint(self, sample: Sample) -> Constraint:
        """The grammar's side of an answer to this sample."""
        ...

    def finished(self, branch: Branch, text: str) -> str:
        """The answer's text, from what was generated under its constraint."""
        ...


@dataclass(frozen=True)
class Frame:
    """Questions about the same pictures: their places among all, and the pictures' keys."""

    keys: tuple[Hashable, ...]
    places: list[int]


class ModelAnswerer:
    """Greedy answers of a model of any family, which lies on its device already.

    batch_size: questions that are decoded at once. cameras: in the order that the model was trained with; pictures are shown in
    it, by name, () = as they come. form: None = free text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Processor,
        budgets: Budgets,
        *,
        batch_size: int,
        cameras: Sequence[str] = (),
        name: str = "",
        digest: str = "",
        form: Form | None = None,
    ) -> None:
        self.name, self.digest, self.budgets = name, digest, budgets
        self._model, self._processor, self._form = model, processor, form
        self._batch_size, self._cameras = batch_size, tuple(cameras)
        self._max_positions = int(model.config.text_config.max_position_embeddings)

    @torch.no_grad()  # not inference_mode: a model in training keeps what it computes here, such as rotary tables
    def answers(self, samples: Sequence[Sample], *, pictures: Pictures = CLEAN, on_answer: OnAnswer | None = None) -> list[Given]:
        """As Answerer says. Raises RunnerError when the device has no memory for a batch."""
        found: dict[int, Given] = {}
        samples = [named_sample(sample, self._cameras) for sample in samples]
        groups = list(self._groups(samples, pictures))
        with PictureReader(pictures, self._pixel_values) as reader:
            kept = _Embeddings(self._model, reader, samples, self._batch_size)
            for group, following in zip(groups, [*groups[1:], []], strict=True):
                kept.begin(group, following)
                for place, given in self._answered(samples, group, kept):
                    found[place] = given
                    if on_answer is not None:
                        on_answer(place, given)
                kept.forget()
        return [found[place] for place in range(len(samples))]

    def _groups(self, samples: Sequence[Sample], pictures: Pictures) -> Iterator[list[Frame]]:
        """Frames with a batch of questions together, or one frame with more than that."""
        order = sorted(range(len(samples)), key=lambda i: (samples[i].scene, samples[i].frame, samples[i].images))
        for window in _slices(order, self._batch_size * _WINDOW_BATCHES):
            frames: dict[tuple[Hashable, ...], Frame] = {}
            for place in window:
                keys = pictures.keys(samples[place])
                frames.setdefault(keys, Frame(keys, [])).places.append(place)
            group: list[Frame] = []
            for frame in sorted(frames.values(), key=lambda frame: len(frame.keys)):
                if group and sum(len(one.places) for one in [*group, frame]) > self._batch_size:
                    yield group
                    group = []
                group.append(frame)
            yield group

    def _answered(self, samples: Sequence[Sample], group: Sequence[Frame], kept: _Embeddings) -> Iterator[tuple[int, Given]]:
        encoder = self._processor.prompts
        prompts = [encoder.prefix(len(frame.keys)) for frame in group]
        embeds = [torch.cat([kept.of(key) for key in frame.keys]) for frame in group]
        branches = [
            self._branch(samples[i], len(prompt)) for frame, prompt in zip(group, prompts, strict=True) for i in frame.places
        ]
        asked = [(row, place) for row, frame in enumerate(group) for place in frame.places]
        try:
            positions = [self._processor.prefix_positions(prompt) for prompt in prompts]
            prefixes = read_prefixes(self._model, prompts, embeds, positions, encoder.image_token_id)
            for batch in _slices(range(len(asked)), self._batch_size):
                rows = [asked[i][0] for i in batch]
                generate(self._model, prefixes, rows, [branches[i] for i in batch], end_id=encoder.end_of_turn_id)
                yield from ((asked[i][1], self._given(branches[i])) for i in batch)
        except torch.OutOfMemoryError as error:
            raise RunnerError(
                f"out of memory while {len(asked)} questions are answered; take a smaller batch_size than {self._batch_size}"
            ) from error

    def _branch(self, sample: Sample, num_prefix: int) -> Branch:
        """Its budget ends where the model's positions do."""
        instruction = "" if self._form is None else self._form.instruction
        try:
            question = self._processor.prompts.suffix(sample.question + instruction)
        except UsageError as error:
            raise DataError(f"{sample.source}: {error}") from error
        room = self._max_positions - num_prefix - len(question)
        if room < 1:
            raise DataError(
                f"{sample.source}: {len(sample.images)} pictures and the question make {num_prefix + len(question)} tokens; "
                f"the model has {self._max_positions} positions, and an answer takes at least 1"
            )
        constraint = None if self._form is None else self._form.constraint(sample)
        return Branch(question, min(self.budgets.of(sample.capability), room), constraint)

    def _given(self, branch: Branch) -> Given:
        assert branch.finish_reason is not None
        text = self._processor.prompts.decode(branch.tokens)
        if self._form is not None:
            text = self._form.finished(branch, text)
        return Given(text, branch.finish_reason, len(branch.tokens), branch.mean_logprob)

    def _pixel_values(self, image: RGBImage) -> PixelValues:
        return self._processor.normalize(self._processor.resize(image))


class _Embeddings:
    """Vision tokens [T, D] of pictures by key; those used last are kept for later frames."""

    def __init__(
        self, model: PreTrainedModel, reader: PictureReader[PixelValues], samples: Sequence[Sample], batch_size: int
    ) -> None:
        self._model, self._reader, self._samples, self._batch_size = model, reader, samples, batch_size
        self._found: dict[Hashable, Tensor] = {}

    def begin(self, group: Sequence[Frame], following: Sequence[Frame]) -> None:
        """Encode what the group shows, while the pictures of the following one are being read."""
        for frame in [*group, *following]:
            self._reader.begin(self._samples[frame.places[0]], self._found)
        needed = list(dict.fromkeys(key for frame in group for key in frame.keys))
        for key in needed:
            if key in self._found:
                self._found[key] = self._found.pop(key)  # it is the youngest again
        for keys in _slices([key for key in needed if key not in self._found], self._batch_size):
            pixel_values = torch.stack([torch.from_numpy(self._reader.take(key)) for key in keys])  # [N, *pixel_shape]
            pixel_values = pixel_values.to(self._model.device, self._model.dtype)
            self._found |= dict(zip(keys, encode_images(self._model, pixel_values), strict=True))

    def of(self, key: Hashable) -> Tensor:
        """[T, D] of a picture that the group shows."""
        return self._found[key]

    def forget(self) -> None:
        """Let the oldest go until the rest fits."""
        total = sum(embeds.nbytes for embeds in self._found.values())
        for key in list(self._found):
            if total <= _KEPT_BYTES:
                return
            total -= self._found.pop(key).nbytes


def _slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
