"""A model's weights become those that its bundle will have, in place: what the model computes afterwards is what the graphs must.

forms_by_plan       which layer gets which form
quantize_weights    by data where there is some: vision first, then the embedding, then the decoder on what these give
by_matmul           layers -> the MatMuls of the graphs, [in, out]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from drivekd.data.batch import Batch
from drivekd.errors import ExportError
from drivekd.export.source.layer_recording import vision_layers
from drivekd.models import encode_images, language_model
from drivekd.models.decoder import run_decoder
from drivekd.quantization.form import Quantized, WeightForm, quantized
from drivekd.quantization.layers import Call, Stage, recorded, round_stages, round_to_nearest, set_weight, weight_of
from drivekd.quantization.linears import HEAD, PACKED, is_vision, linear_layers, matmul_name

from .frames import Frames


class Tail(nn.Module):
    """What is behind the decoder's layers, as a layer: hidden [B, S, D], and which tokens [B, S] something follows -> logits."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.lm_head = norm, head

    def forward(self, hidden: Tensor, spoken: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(hidden)[spoken])
        return logits


@torch.no_grad()
def quantize_weights(
    model: PreTrainedModel,
    forms: Mapping[str, WeightForm],
    embedding: WeightForm | None,
    frames: Frames | None,
    scales: Mapping[str, Tensor],
    *,
    half: bool = False,
) -> dict[str, Quantized]:
    """Round what `forms` names, and the embedding's rows; None: they stay float.

    scales: by layer, trained ones; where there are any, the values are the nearest to them. Else by data on the frames; None = to
    the nearest with scales as form.block_scales has them. A head that is tied to the embedding becomes a matrix of its own.
    Raises ExportError when a weight is not finite.
    """
    linears = linear_layers(model)
    _check_finite({name: linear for name, linear in linears.items() if name in forms})
    vision = {name: linear for name, linear in linears.items() if is_vision(name)}
    decoder = {name: linear for name, linear in linears.items() if not is_vision(name)}
    if frames is None or scales:
        found = round_to_nearest({**vision, **decoder}, forms, scales, half=half)
        _round_embedding(model, embedding)
        return found
    exact = [image_features(model, frames, batch) for batch in frames.chosen]
    found = _round_vision(model, vision, forms, frames, half)
    given = [image_features(model, frames, batch) for batch in frames.chosen] if found else exact
    return found | _round_decoder(model, decoder, forms, embedding, frames.chosen, exact, given, half)


def image_features(model: PreTrainedModel, frames: Frames, batch: Batch) -> Tensor:
    """[T, D] of a batch's one picture. Raises ExportError when they are not finite."""
    pixels = frames.collate.pixel_values(batch.images[0], batch.samples[0].source)
    features = encode_images(model, pixels).flatten(0, 1)
    if not bool(torch.isfinite(features).all()):
        raise ExportError(
            f"{batch.samples[0].source}: the features of its image are NaN or infinite, weights cannot be rounded on it; look"
        )
    return features


def _round_vision(
    model: PreTrainedModel, linears: Mapping[str, nn.Module], forms: Mapping[str, WeightForm], frames: Frames, half: bool
) -> dict[str, Quantized]:
    """By data where four bits are asked for; eight to the nearest lose a thousandth, and are not worth minutes."""
    coarse = [name for name in linears if name in forms and forms[name].bits < 8]
    layers = list(vision_layers(model))
    inner = {name: linear for layer in layers for name, linear in _within(layer, linears).items()}
    found: dict[str, Quantized] = {}
    if coarse:
        with recorded(layers) as (calls, hidden):
            for batch in frames.chosen:
                image_features(model, frames, batch)
        stages = [Stage(layer, _within(layer, linears), made) for layer, made in zip(layers, calls, strict=True)]
        found = round_stages(stages, hidden, [state.clone() for state in hidden], forms, half=half)
        linears = {name: linear for name, linear in linears.items() if name not in inner}
    return found | round_to_nearest(linears, forms, half=half)


def _round_decoder(
    model: Any,
    linears: Mapping[str, nn.Module],
    forms: Mapping[str, WeightForm],
    embedding: WeightForm | None,
    batches: Sequence[Batch],
    exact_features: Sequence[Tensor],
    given_features: Sequence[Tensor],
    half: bool,
) -> dict[str, Quantized]:
    decoder: Any = language_model(model)
    layers = list(decoder.layers)
    with recorded(layers) as (calls, exact):
        for batch, features in zip(batches, exact_features, strict=True):
            run_decoder(model, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)
    _round_embedding(model, embedding)
    given = [_embedded(model, *pair) for pair in zip(batches, given_features, strict=True)]
    stages = [Stage(layer, _within(layer, linears), made) for layer, made in zip(layers, calls, strict=True)]
    if HEAD in forms:
        spoken = [Call((batch.token_mask & ~batch.vision_mask,), {}) for batch in batches]
        stages.append(Stage(Tail(decoder.norm, model.lm_head), {HEAD: model.lm_head}, spoken, last=True))
    return round_stages(stages, exact, given, forms, half=half)


def _embedded(model: PreTrainedModel, batch: Batch, features: Tensor) -> Tensor:
    embeds: Tensor = model.get_input_embeddings()(batch.input_ids)
    return embeds.masked_scatter(batch.vision_mask[..., None], features)


def _within(layer: nn.Module, linears: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    inside = set(layer.modules())
    return {name: linear for name, linear in linears.items() if linear in inside}


def _round_embedding(model: PreTrainedModel, form: WeightForm | None) -> None:
    """Rows are gathered, not multiplied with: the nearest values serve best."""
    if form is not None:
        table: Any = model.get_input_embeddings()
        set_weight(table, embedding_rows(weight_of(table), form).dequantized())


def embedding_rows(weight: Tensor, form: WeightForm) -> Quantized:
    """[V, D] in blocks along a row; scales are float16 always, as embedding.safetensors keeps them."""
    return quantized(weight, form, half=True)


def _check_finite(linears: Mapping[str, nn.Module]) -> None:
    for name, linear in linears.items():
        wrong = ~torch.isfinite(weight_of(linear))
        if bool(wrong.any()):
            raise ExportError(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} weights are NaN or infinite; they cannot be quantized"
            )


def by_matmul(found: Mapping[str, Quantized]) -> dict[str, Quantized]:
    """Layers that are one MatMul in the graphs (query, key and value; gate and up) one below the other."""
    groups: dict[str, list[Quantized]] = {}
    order = list(PACKED)  # as the graphs have them
    for layer in sorted(found, key=lambda layer: order.index(last) if (last := layer.rpartition(".")[2]) in order else -1):
        groups.setdefault(matmul_name(layer), []).append(found[layer])
    return {name: _joined(parts) for name, parts in groups.items()}


def _joined(parts: Sequence[Quantized]) -> Quantized:
    values, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "scales"))
    return Quantized(values, scales, parts[0].form)
