"""Greedy decoding of many prompts at once, for evaluation.

    B prompts, S tokens of the longest, D width, V vocabulary, A rotary axes

Rows are padded on the left, so that all of them generate in the same column; a row leaves the batch when its turn ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from drivekd.models import language_model, rotary_positions


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
