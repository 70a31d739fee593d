"""What the untouched torch model answers: the truth that parity is measured against.

The model runs as its family wrote it (its own attention, positions and cache, one prompt at a time, no padding), so the
reference shares nothing with the graphs but the weights. It is taken once, so that the model can be freed before any engine
starts.

N images, T tokens an image, D hidden size, V vocabulary, K key/value heads, d head dim
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from drivekd.images import RGBImage
from drivekd.models import encode_images
from drivekd.models.qwen2_5_vl import MODEL_TYPE as QWEN2_5_VL
from drivekd.models.qwen2_5_vl import image_grids
from drivekd.processor import Processor

NUM_STEPS = 8  # decode steps after the first token
SHORT_ROW = 5  # tokens of a row much shorter than the others


@dataclass(frozen=True)
class Generation:
    """One prompt answered greedily; the end of turn is not obeyed.

    logits [1 + steps, V]; tokens [1 + steps]; kv: per layer key and value, each [1, K, prompt + steps, d].
    """

    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]
    kv: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Reference:
    """Everything that parity compares with.

    images: each camera's tiles; image_embeds [N, T, D]. rows: token ids of prompts without images, of different lengths, and
    row_logits [rows, V] behind each one's last. questions: asked about all images, with their generations.
    """

    images: tuple[RGBImage, ...]
    image_embeds: NDArray[np.float32]
    rows: tuple[tuple[int, ...], ...]
    row_logits: NDArray[np.float32]
    questions: tuple[str, ...]
    generations: tuple[Generation, ...]


@torch.no_grad()
def take_reference(
    model: PreTrainedModel, processor: Processor, images: Sequence[RGBImage], questions: Sequence[str]
) -> Reference:
    """Ask the model about cameras' tiles, uint8 [height, width, 3] each, and literal questions."""
    pixel_values = torch.from_numpy(np.stack([processor.normalize(image) for image in images]))
    suffixes = [processor.prompts.suffix(question) for question in questions]
    rows = [[*processor.prompts.prefix(0), *suffix] for suffix in suffixes]
    rows.append(rows[0][-SHORT_ROW:])
    prefix = processor.prompts.prefix(len(images))
    image_token = processor.prompts.image_token_id
    return Reference(
        images=tuple(images),
        image_embeds=encode_images(model, pixel_values).numpy(),
        rows=tuple(map(tuple, rows)),
        row_logits=np.stack([_generate(model, ids, {}, 0).logits[0] for ids in rows]),
        questions=tuple(questions),
        generations=tuple(
            _generate(model, ids, _image_inputs(model, ids, pixel_values, image_token), NUM_STEPS)
            for ids in ([*prefix, *suffix] for suffix in suffixes)
        ),
    )


def _image_inputs(model: PreTrainedModel, ids: Sequence[int], pixel_values: Tensor, image_token: int) -> dict[str, Tensor]:
    """The images as the family's own forward takes them. pixel_values [N, *pixel_shape]."""
    if model.config.model_type != QWEN2_5_VL:
        return {"pixel_values": pixel_values.flatten(0, -4)}  # tiles [N, 3, S, S], whether or not an image has several
    return {
        "pixel_values": pixel_values.flatten(0, 3),
        "image_grid_thw": image_grids(pixel_values, model.config.vision_config.spatial_merge_size),
        "mm_token_type_ids": (torch.tensor([ids]) == image_token).int(),
    }


def _generate(model: Any, ids: Sequence[int], images: dict[str, Tensor], num_steps: int) -> Generation:
    cache = DynamicCache(config=model.config.text_config)
    forget_positions(model)
    output = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1, **images)
    logits = [output.logits[0, -1]]
    for _ in range(num_steps):
        token = logits[-1].argmax().reshape(1, 1)
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        logits.append(output.logits[0, -1])
    stacked = torch.stack(logits)
    kv = tuple(tensor.numpy() for layer in cache.layers for tensor in (layer.keys, layer.values))
    return Generation(stacked.numpy(), stacked.argmax(dim=-1).numpy(), kv)


def forget_positions(model: Any) -> None:
    """Qwen2.5-VL keeps the last prompt's position offset on the module; a prompt without images would take it over."""
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
