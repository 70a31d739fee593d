"""Takes layers.npz from the torch model as its family wrote it: nothing of the graphs' own code is in the reference.

S prompt tokens, D hidden size, A rotary axes
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_window_index

from drivekd.images import PatchSettings, RGBImage
from drivekd.models import encode_images, language_model, part, rotary_positions
from drivekd.models.qwen2_5_vl import window_order
from drivekd.processor import Positions, Processor

from .layer_values import (
    Floats,
    GraphValues,
    LayerValues,
    layer_values_to_bytes,
    probe_columns,
    probe_places,
    probe_rows,
)

Order = NDArray[np.int64]


@torch.no_grad()
def record_layers(model: PreTrainedModel, processor: Processor, image: RGBImage, question: str) -> bytes:
    """The bytes of layers.npz. model: fp32, on the CPU, in evaluation mode. image: a golden tile, uint8 [height, width, 3].

    One pass of the vision tower over the image, and one of the decoder over a prompt with the image and the literal question.
    """
    vision, image_embeds = _vision_values(model, processor, image)
    prefix, suffix = processor.prompts.prefix(1), processor.prompts.suffix(question)
    ids = np.asarray([*prefix, *suffix], np.int64)
    positions = prompt_positions(processor.prefix_positions(prefix), len(suffix))
    embeds = _prompt_embeds(model, ids, processor.prompts.image_token_id, image_embeds)
    decoder = _decoder_values(model, embeds, positions)
    text_ids = np.where(ids == processor.prompts.image_token_id, -1, ids)
    return layer_values_to_bytes(LayerValues(vision, decoder, embeds.numpy(), text_ids, positions))


def prompt_positions(prefix: Positions, num_tokens: int) -> Positions:
    """Positions [A, P] of a prefix and of `num_tokens` of text behind it: it goes on at the largest, on every axis alike."""
    behind = prefix.max(initial=-1) + 1 + np.arange(num_tokens, dtype=np.int64)
    return np.concatenate([prefix, np.broadcast_to(behind, (len(prefix), num_tokens))], axis=1)


def _vision_values(model: PreTrainedModel, processor: Processor, image: RGBImage) -> tuple[GraphValues, Tensor]:
    """Probed rows, and image_embeds [T, D]."""
    pixel_values = torch.from_numpy(processor.normalize(image))[None]
    with _probed(vision_layers(model), graph_row_order(model, processor)) as layers:
        embeds = encode_images(model, pixel_values)[0]
    return GraphValues(np.stack(layers), probe_rows(embeds.numpy())), embeds


def _prompt_embeds(model: PreTrainedModel, ids: Order, image_token_id: int, image_embeds: Tensor) -> Tensor:
    """[S, D], rounded to the float16 in which they are stored, so that both sides read the same."""
    embeds: Tensor = model.get_input_embeddings()(torch.from_numpy(ids)).clone()
    embeds[torch.from_numpy(ids) == image_token_id] = image_embeds
    return embeds.half().float()


def _decoder_values(model: Any, embeds: Tensor, positions: Positions) -> GraphValues:
    decoder: Any = language_model(model)
    position_ids = rotary_positions(model, torch.from_numpy(positions)[:, None])
    with _probed(decoder.layers) as layers:
        hidden = decoder(inputs_embeds=embeds[None], position_ids=position_ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -1])
    return GraphValues(np.stack(layers), probe_columns(logits.numpy()))


def vision_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a vision tower, in order."""
    tower: Any = part(model, "vision_encoder")
    layers = tower.blocks if hasattr(tower, "blocks") else tower.encoder.layer
    assert isinstance(layers, nn.ModuleList)
    return layers


def graph_row_order(model: PreTrainedModel, processor: Processor) -> Order | None:
    """Row of torch's layer outputs for each row of the graph's; None when they are the same.

    Qwen2.5-VL lays its tokens window by window, and the graph puts windows of equal size together (graphs_qwen).
    """
    if not isinstance(processor.images, PatchSettings):
        return None
    visual: Any = part(model, "vision_encoder")
    images = processor.images
    rows, columns = images.token_grid
    grid = torch.tensor([[1, rows * images.merge, columns * images.merge]])
    sizes = {"window_size": visual.window_size, "patch_size": visual.patch_size, "spatial_merge_size": images.merge}
    torch_order, _ = get_vision_window_index(grid, **sizes)  # which token stands where, [T]
    graph_order, _ = window_order(visual, images)
    tokens = torch_order.argsort()[graph_order]
    patches: Tensor = tokens[:, None] * images.merge**2 + torch.arange(images.merge**2)  # a token's patches stay together
    return patches.flatten().numpy()


@contextmanager
def _probed(layers: nn.ModuleList, order: Order | None = None) -> Iterator[list[Floats]]:
    """Within it, every call of the layers appends its probed rows to the list, in the graph's row order."""
    found: list[Floats] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output  # transformers' layers gave tuples before 4.54
        rows = hidden.reshape(-1, hidden.shape[-1]).numpy()
        places = probe_places(len(rows))
        found.append(np.array(rows[places if order is None else order[places]], np.float32))

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
