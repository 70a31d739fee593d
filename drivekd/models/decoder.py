"""One call for every family's language model: embeddings, features of the images in their places, an explicit mask and positions.

B samples, S positions, A position axes (1; 3 for mRoPE), D width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drivekd.models import language_model, rotary_positions


def run_decoder(
    model: PreTrainedModel, input_ids: Tensor, vision_mask: Tensor, features: Tensor, mask: Tensor | None, positions: Tensor
) -> Tensor:
    """Last hidden states [B, S, D].

    input_ids, vision_mask [B, S]; features [vision tokens, D] fill the places of vision_mask in order; mask [B, 1, S, S] bool, or
    None for causal attention; positions [A, B, S].
    """
    decoder: Any = language_model(model)
    if mask is None:  # with none at all, transformers would guess one from the positions; of ones it makes none
        mask = torch.ones_like(input_ids, dtype=torch.bool)  # [B, S]
    embeds = decoder.get_input_embeddings()(input_ids)  # [B, S, D]
    embeds = embeds.masked_scatter(vision_mask[..., None], features.to(embeds.dtype))
    hidden: Tensor = decoder(
        inputs_embeds=embeds,
        attention_mask=mask,  # four axes are taken as they are
        position_ids=rotary_positions(model, positions),
        use_cache=False,
    ).last_hidden_state
    return hidden
