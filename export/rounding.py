"""How a checkpoint's weights come to be rounded: which MatMuls have how many bits, and what the model says with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from drivekd.errors import UsageError
from drivekd.log import logger
from drivekd.quantization.form import Quantized, WeightForm
from drivekd.quantization.layers import weight_of
from drivekd.quantization.linears import check_patterns, is_vision, linear_layers, matching, matmul_name

from .exported import Exported
from .quantize.embedding import embedding_form, embedding_spec
from .quantize.frames import Frames
from .quantize.mix import chosen_for_eight, foreseen_costs, mix_rows
from .quantize.weights import by_matmul, quantize_weights
from .settings import ExportPlan
from .source.layer_recording import record_layers
from .source.reference import take_reference
from .source.source import Source
from .trained import TrainedScales, write_rounded_checkpoint

SMALL_FILES_BYTES = 300_000  # graphs, recorded runs, manifest

OnMix = Callable[[list[list[str]]], None]  # rows under MIX_HEADER


def check_names(source: Source, plan: ExportPlan) -> None:
    """The patterns of a plan name something. Names are those of the graphs (tests hold it), which take minutes.

    Raises ConfigError.
    """
    names = list(dict.fromkeys(map(matmul_name, linear_layers(source.model))))
    check_patterns("exclude", plan.settings.exclude, names)
    check_patterns("int8", plan.settings.int8, [name for name in names if not is_vision(name)])


def mixed(source: Source, plan: ExportPlan, frames: Frames, on_mix: OnMix | None) -> ExportPlan:
    """The plan with 8 bits where they save most, within the size that its settings ask for. on_mix: gets the table.

    Raises UsageError when that size is less than 4 bits everywhere need.
    """
    logger.info("finding out where 8 bits save most")
    block = plan.decoder.block
    left = matching(plan.settings.exclude, [matmul_name(layer) for layer in linear_layers(source.model)])
    costs = [cost for cost in foreseen_costs(source.model, frames, block) if cost.name not in left]
    if not costs:
        raise UsageError("nothing of the decoder is left to be mixed: exclude names all of it")
    bits = plan.settings.bits
    if bits is None:
        weights, least = sum(cost.weights for cost in costs), WeightForm(4, block).bits_per_weight(block)
        bits = _bits_within(source, plan, weights)
        if bits < least:
            needed_mb = (plan.settings.budget_mb or 0) + (least - bits) * weights / 8e6
            raise UsageError(
                f"budget_mb = {plan.settings.budget_mb:g}: with every MatMul in 4 bits it is about {needed_mb:.1f} MB"
            )
    chosen = chosen_for_eight(costs, bits, block)
    if on_mix is not None:
        on_mix(mix_rows(costs, chosen))
    return dataclasses.replace(plan, decoder=dataclasses.replace(plan.decoder, int8=chosen))


def _bits_within(source: Source, plan: ExportPlan, weights: int) -> float:
    """Of a weight of the decoder, when the whole bundle shall have budget_mb. weights: how many there are."""
    assert plan.settings.budget_mb is not None
    model: Any = source.model
    rows = model.get_input_embeddings().weight
    bits_of = {"fp32": 32.0, "fp16": 16.0, "int8": 8 + 16 / plan.decoder.block, "int4": 4 + 16 / plan.decoder.block}
    vision = sum(weight_of(linear).numel() for layer, linear in linear_layers(model).items() if is_vision(layer))
    total = sum(parameter.numel() for parameter in model.parameters())
    tied = model.lm_head.weight is rows
    others = total + rows.numel() * tied - weights - vision - rows.numel()  # norms, biases, positions: float
    others_bytes = len(source.processor.tokenizer.to_str().encode()) + SMALL_FILES_BYTES
    fixed = vision * bits_of[plan.vision.precision] + rows.numel() * bits_of[plan.embedding] + max(0, others) * 32
    return float((plan.settings.budget_mb * 8e6 - fixed - 8 * others_bytes) / weights)


def rounded_weights(
    source: Source, exported: Exported, plan: ExportPlan, frames: Frames | None, trained: TrainedScales
) -> tuple[dict[str, Quantized], Exported]:
    """The model's weights as the bundle will have them, by MatMul, and what the model says with them. It is spoilt.

    frames: None = to the nearest. trained: scales that are taken as they are. Raises ExportError as quantize_weights does.
    """
    if trained.scales:
        logger.info(
            "taking the scales that the weights were trained with%s", "" if frames is None else "; records show what it costs"
        )
    elif frames is not None:
        logger.info("rounding weights on %d frames, %d tokens, of %s", len(frames.chosen), frames.tokens, frames.source)
    spec = embedding_spec(plan.embedding, exported.info.hidden_size, plan.decoder.block)
    widths = {layer: weight_of(linear).shape[1] for layer, linear in linear_layers(source.model).items()}
    forms = {layer: form for layer, width in widths.items() if (form := plan.form_of(layer, width)) is not None}
    half = plan.settings.activations == "fp16"
    found = quantize_weights(source.model, forms, embedding_form(spec), frames, trained.scales, half=half)
    if plan.settings.rounded_checkpoint is not None:
        before = torch.from_numpy(exported.embedding)
        folder = plan.settings.rounded_checkpoint
        write_rounded_checkpoint(folder, source, before, found)
    images, questions = list(exported.reference.images), list(exported.reference.questions)
    rounded = dataclasses.replace(
        exported,
        embedding_spec=spec,
        reference=take_reference(source.model, source.processor, images, questions),
        layers=record_layers(source.model, source.processor, images[0], questions[0]),
    )
    return by_matmul(found), rounded
