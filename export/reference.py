"""What the untouched torch model answers: the truth that parity is measured against.

The model runs as its family wrote it (its own attention, its own cache, one prompt at a time, no padding), so the reference
shares nothing with the graphs but the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import InternVLForConditionalGeneration
from transformers.cache_utils import DynamicCache

NUM_STEPS = 8  # decode steps after the first token


@dataclass(frozen=True)
class Generation:
    """One prompt answered greedily.

    logits [1 + steps, V]; tokens [1 + steps]; kv: per layer key and value, each [1, K, prompt + steps, d].
    """

    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]
    kv: tuple[NDArray[np.float32], ...]


@torch.no_grad()
def image_embeds(model: InternVLForConditionalGeneration, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
    """pixel_values [N, 3, S, S] -> [N, T, D]."""
    embeds: torch.Tensor = model.get_image_features(torch.from_numpy(pixel_values)).pooler_output
    return embeds.numpy()


@torch.no_grad()
def last_logits(model: InternVLForConditionalGeneration, ids: Sequence[int]) -> NDArray[np.float32]:
    """Text ids -> logits [V] behind the last one."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits
    return logits[0, -1].numpy()


@torch.no_grad()
def generate(model: InternVLForConditionalGeneration, ids: Sequence[int], pixel_values: NDArray[np.float32]) -> Generation:
    """Answer one prompt with images [N, 3, S, S] greedily; the end of turn is not obeyed."""
    cache = DynamicCache(config=model.config.text_config)
    output = model(
        input_ids=torch.tensor([ids]),
        pixel_values=torch.from_numpy(pixel_values),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits = [output.logits[0, -1]]
    for _ in range(NUM_STEPS):
        token = logits[-1].argmax().reshape(1, 1)
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        logits.append(output.logits[0, -1])
    stacked = torch.stack(logits)
    kv = tuple(tensor.numpy() for layer in cache.layers for tensor in (layer.keys, layer.values))
    return Generation(stacked.numpy(), stacked.argmax(dim=-1).numpy(), kv)
