"""Models that compute with the weights of a bundle in fewer bits: what is rounded once, and the embedding, whose rows always are.

A head that is tied to the embedding is rounded by its own form, the embedding's rows by theirs, which need no scales in a file:

    row = quantized(row of the embedding, 8 bits in blocks along the row, half=True)        as embedding.safetensors keeps it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .form import WeightForm, quantized
from .linears import HEAD, linear_layers
from .straight_through import computed_weight


@torch.no_grad()
def round_model(model: PreTrainedModel, scales: Mapping[str, Tensor], forms: Mapping[str, WeightForm]) -> None:
    """From now on a loaded model, without adapters, answers as the bundle of these scales and forms will.

    Does nothing where both are empty. Raises KeyError for a layer that it has not, RuntimeError for scales of a wrong shape.
    """
    layers = linear_layers(model)
    if HEAD in forms:
        untie_head(model)
    for layer, form in forms.items():
        round_layer(layers[layer], scales[layer], form)
    if forms:
        round_embedding(model, next(iter(forms.values())).block)


@torch.no_grad()
def round_layer(layer: Any, scales: Tensor, form: WeightForm) -> None:
    """In place: the layer's weight becomes the one that the bundle will have; a second time changes nothing."""
    weight = layer.weight
    found = computed_weight(weight.flatten(1).float(), scales.to(weight.device), form)
    weight.copy_(found.view_as(weight))


def untie_head(model: Any) -> None:
    """Give the head a weight of its own, frozen, where it has the embedding's."""
    if model.lm_head.weight is model.get_input_embeddings().weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)


def embedding_form(width: int, block: int) -> WeightForm:
    """Of rows of so many values: the whole row is a block where blocks do not divide it."""
    return WeightForm(8, block if width % block == 0 else width)


def round_embedding(model: PreTrainedModel, block: int, wanted: Callable[[], bool] = lambda: True) -> None:
    """From now on the embedding gives rounded rows, while `wanted` says so; its weight stays, and gets their gradients."""

    def rounded_rows(_: object, __: object, rows: Tensor) -> Tensor:
        if not wanted():
            return rows
        result: Tensor = _Rows.apply(rows, embedding_form(rows.shape[-1], block))  # type: ignore[no-untyped-call]
        return result

    embedding: Any = model.get_input_embeddings()
    embedding.register_forward_hook(rounded_rows)


class _Rows(torch.autograd.Function):
    """No weight of a block is beyond the range of its own scale, so that every gradient passes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, form: WeightForm) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        return quantized(flat, form, half=True).dequantized().view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None
