"""Tiny lively models of each family, prompts with pictures for them, and their logits as the distiller computes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from drivekd.hf_checkpoint import load_processor
from drivekd.models import encode_images, language_model, load_model, rotary_positions
from drivekd.models.tiny import (
    QWEN_SPECIAL_TOKENS,
    SPECIAL_TOKENS,
    TinySize,
    build_tiny,
    build_tiny_qwen,
    train_tokenizer,
    write_checkpoint,
)
from drivekd.processor import Processor

SIZE = TinySize(vision_layers=3, vision_width=32, language_layers=3, language_width=64, image_size_px=56)
BUILDERS = {"internvl": (build_tiny, SPECIAL_TOKENS), "qwen2_5_vl": (build_tiny_qwen, QWEN_SPECIAL_TOKENS)}


@dataclass(frozen=True)
class Tiny:
    """A checkpoint of one family with lively weights, loaded."""

    folder: Path
    model: PreTrainedModel
    processor: Processor


def make_tiny(family: str, folder: Path) -> Tiny:
    build, special_tokens = BUILDERS[family]
    tokenizer = train_tokenizer(["What is it? A red light. Yes. No."] * 20, [], 400, special_tokens=special_tokens)
    write_checkpoint(folder, shaken(build(SIZE, tokenizer, seed=0)), tokenizer)
    return Tiny(folder, load_model(folder).eval(), load_processor(folder))


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """As initialised, attention is nearly uniform, and all samples are alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def noise_pixels(processor: Processor, count: int, seed: int = 0) -> Tensor:
    images = np.random.default_rng(seed).integers(0, 256, (count, 50, 90, 3), dtype=np.uint8)
    return torch.from_numpy(np.stack([processor.normalize(processor.resize(image)) for image in images]))


@dataclass(frozen=True)
class Prompts:
    """Two prompts of other lengths and numbers of images, padded on the right."""

    ids: Tensor  # [B, S]
    mask: Tensor  # [B, S] bool
    positions: Tensor  # [A, B, S]
    is_image: Tensor  # [B, S] bool


def padded_prompts(processor: Processor) -> Prompts:
    prompts = processor.prompts
    asked = [(1, "What is it?", "Yes."), (2, "A red light. What is it? A red light.", "No. A red light.")]
    rows, positions = [], []
    for num_images, question, answer in asked:
        prefix = prompts.prefix(num_images)
        text = prompts.suffix(question) + prompts.answer(answer)
        axes = processor.prefix_positions(prefix)  # [A, P]
        following = axes.max() + 1 + np.arange(len(text))
        rows.append(prefix + text)
        positions.append(np.concatenate([axes, np.broadcast_to(following, (len(axes), len(text)))], axis=1))
    length = max(map(len, rows))
    assert len(rows[0]) < length, "the test wants padding"
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    stacked = np.stack([np.pad(axes, ((0, 0), (0, length - axes.shape[1]))) for axes in positions], axis=1)
    return Prompts(ids, mask, torch.from_numpy(stacked), (ids == prompts.image_token_id) & mask)


def our_logits(tiny: Tiny, prompts: Prompts, pixel_values: Tensor, attention_mask: Any) -> Tensor:
    """As the distiller runs a model: embeddings, image embeddings put in, decoder, head."""
    embeds = tiny.model.get_input_embeddings()(prompts.ids)  # [B, S, D]
    embeds = embeds.masked_scatter(prompts.is_image[..., None], encode_images(tiny.model, pixel_values))
    hidden = language_model(tiny.model)(
        inputs_embeds=embeds,
        attention_mask=attention_mask,
        position_ids=rotary_positions(tiny.model, prompts.positions),
        use_cache=False,
    ).last_hidden_state
    return tiny.model.lm_head(hidden)  # type: ignore[no-any-return]
