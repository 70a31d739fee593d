"""A checkpoint that answers many questions: each distinct image goes through the vision tower once, texts in batches.

Decoding is greedy. Rows are padded on the left, so that all of them generate in the same column; a row leaves the batch when its
turn ends. Where the checkpoint holds weight_scales.safetensors, it answers with the rounded weights: they are what will run.

    B prompts, S tokens of the longest, D width, V vocabulary, A rotary axes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from drivekd.errors import DataError
from drivekd.evaluate.scores import ImageSetting
from drivekd.files import checkpoint_digest
from drivekd.hf_checkpoint import Checkpoint, load_processor
from drivekd.images import PixelValues, load_image
from drivekd.models import encode_images, language_model, load_model, rotary_positions
from drivekd.quantization.form import WeightForm
from drivekd.quantization.linears import linear_layers
from drivekd.quantization.rounded_model import round_model
from drivekd.quantization.scales import check_scales, read_scales
from drivekd.sample import Sample


def embed_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    image_embeds: Sequence[Tensor],
    positions: Sequence[NDArray[np.int64]],
    image_token_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids with the images' embeddings put in -> (inputs_embeds [B, S, D], attention_mask [B, S], positions [A, B, S]).

    image_embeds: for each prompt [its vision tokens, D], in order. positions: for each prompt [A, its length].
    """
    length = max(map(len, prompts))
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])  # [B, S]
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])  # [B, S]
    padded = np.stack([np.pad(axes, ((0, 0), (length - axes.shape[1], 0))) for axes in positions], axis=1)  # [A, B, S]
    vision = (ids == image_token_id) & mask.bool()
    device = image_embeds[0].device
    embeds = model.get_input_embeddings()(ids.to(device))  # [B, S, D]
    embeds[vision.to(device)] = torch.cat(list(image_embeds)).to(embeds.dtype)
    return embeds, mask.to(device), torch.from_numpy(padded).to(device)


def generate_greedy(
    model: PreTrainedModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    *,
    end_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """The most likely token after another, until `end_id` (left out) or the limit; one list of ids a row.

    attention_mask [B, S], positions [A, B, S]: as embed_prompts gives them.
    """
    decoder, embed = language_model(model), model.get_input_embeddings()
    generated: list[list[int]] = [[] for _ in range(len(inputs_embeds))]
    rows = list(range(len(inputs_embeds)))  # which prompts are still in the batch
    cache = DynamicCache(config=model.config.text_config)
    for _ in range(max_new_tokens):
        hidden = decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=rotary_positions(model, positions),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # [B, S or 1, D]
        next_ids = model.lm_head(hidden[:, -1]).argmax(-1)  # [B]
        alive = (next_ids != end_id).nonzero()[:, 0]
        if len(alive) == 0:
            break
        if len(alive) < len(rows):
            cache.batch_select_indices(alive)
            rows = [rows[i] for i in alive.tolist()]
            next_ids, positions, attention_mask = next_ids[alive], positions[:, alive], attention_mask[alive]
        for row, token in zip(rows, next_ids.tolist(), strict=True):
            generated[row].append(token)
        inputs_embeds = embed(next_ids)[:, None]  # [B, 1, D]
        positions = positions[:, :, -1:] + 1  # a prompt ends with text, whose axes are alike
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], dim=1)
    return generated


_BATCHES_PER_CHUNK = 16  # questions whose image embeddings are held at once, in batches; bounds memory, not results
_THREADS = 4

T = TypeVar("T")


class CheckpointAnswerer:
    """Greedy texts of a checkpoint of any family.

    batch_size: questions. max_new_tokens: a longer answer is cut there. device: as torch names it.
    """

    def __init__(self, checkpoint: Path | Checkpoint, *, batch_size: int, max_new_tokens: int, device: str = "cpu") -> None:
        checkpoint = Checkpoint.open(checkpoint)
        self.name = str(checkpoint.path)
        self.digest = checkpoint_digest(checkpoint.path)
        self._processor = load_processor(checkpoint)
        self._device = torch.device(device)
        self._model = load_model(checkpoint).eval()
        scales, forms = read_scales(checkpoint.path)
        if forms:
            check_scales(checkpoint.path, scales, forms, linear_layers(self._model))
            round_model(self._model, scales, forms)
            self.name += f" ({told(forms.values())})"
        self._model.to(self._device)
        self._batch_size = batch_size
        self._max_new_tokens = max_new_tokens

    @torch.inference_mode()
    def answers(
        self,
        samples: Sequence[Sample],
        *,
        images: ImageSetting = "clean",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Texts in the order of `samples`. Raises DataError naming the record with an image that cannot be read."""
        texts = [""] * len(samples)
        num_done = 0
        by_frame = sorted(range(len(samples)), key=lambda i: samples[i].images)
        for chunk in _slices(by_frame, self._batch_size * _BATCHES_PER_CHUNK):
            embeds = self._image_embeds([samples[i] for i in chunk], images)
            prompts = {i: self._prompt(samples[i]) for i in chunk}
            by_length = sorted(chunk, key=lambda i: len(prompts[i]))
            for batch in _slices(by_length, self._batch_size):
                vision = [torch.cat([embeds[image] for image in _shown(samples[i], images)]) for i in batch]
                for i, text in zip(batch, self._generate([prompts[i] for i in batch], vision), strict=True):
                    texts[i] = text
                num_done += len(batch)
                if on_progress is not None:
                    on_progress(num_done, len(samples))
        return texts

    def _prompt(self, sample: Sample) -> list[int]:
        prompts = self._processor.prompts
        return [*prompts.prefix(len(sample.images)), *prompts.suffix(sample.question)]

    def _generate(self, prompts: Sequence[Sequence[int]], vision: Sequence[Tensor]) -> list[str]:
        encoder = self._processor.prompts
        positions = [self._processor.prefix_positions(prompt) for prompt in prompts]  # of prefix and question
        generated = generate_greedy(
            self._model,
            *embed_prompts(self._model, prompts, vision, positions, encoder.image_token_id),
            end_id=encoder.end_of_turn_id,
            max_new_tokens=self._max_new_tokens,
        )
        return [encoder.decode(ids) for ids in generated]

    def _image_embeds(self, samples: Sequence[Sample], images: ImageSetting) -> dict[Path | None, Tensor]:
        """Vision tokens [T, D] of each distinct image; the black image has the key None."""
        users: dict[Path | None, Sample] = {}
        for sample in samples:
            for image in _shown(sample, images):
                users.setdefault(image, sample)
        embeds: dict[Path | None, Tensor] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            for keys in _slices(list(users), self._batch_size):
                tiles = list(pool.map(lambda key: self._pixel_values(key, users[key]), keys))
                pixel_values = torch.from_numpy(np.stack(tiles)).to(self._device)  # [N, *pixel_shape]
                embeds |= dict(zip(keys, encode_images(self._model, pixel_values), strict=True))  # [T, D] each
        return embeds

    def _pixel_values(self, image: Path | None, user: Sample) -> PixelValues:
        processor = self._processor
        if image is None:
            width, height = processor.images.tile_px
            return processor.normalize(np.zeros((height, width, 3), np.uint8))
        try:
            return processor.normalize(processor.resize(load_image(image)))
        except DataError as error:
            raise DataError(f"{user.source}: images: {error}") from error


def told(forms: Iterable[WeightForm]) -> str:
    """Of the rounded layers of a model: "weights rounded: int4 in blocks of 32, int8 in blocks of 32"."""
    kinds = sorted({(form.bits, form.block) for form in forms})
    return "weights rounded: " + ", ".join(f"int{bits} in blocks of {block}" for bits, block in kinds)


def _shown(sample: Sample, images: ImageSetting) -> tuple[Path | None, ...]:
    return sample.images if images == "clean" else (None,) * len(sample.images)


def _slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
