"""Checkpoints with weight_scales.safetensors: one that was trained for few bits says in which form its weights serve, an export
takes that as it is; and an export can leave its rounded model as such a checkpoint, for training to go on from."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from drivekd.errors import CheckpointError, ExportError, UsageError
from drivekd.files import whole_directory
from drivekd.log import logger
from drivekd.quantization.form import Quantized, WeightForm
from drivekd.quantization.linears import is_vision, matmul_name
from drivekd.quantization.scales import SCALES_FILE, read_scales, write_scales

from .settings import ExportPlan

FIXED = ("block", "exclude", "int8", "int8_inputs")  # settings that such a checkpoint decides


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")  # ends of names that are not copied


@dataclass(frozen=True)
class TrainedScales:
    """By layer; empty where the checkpoint has none, or they are of another precision."""

    scales: Mapping[str, Tensor] = field(default_factory=dict)
    forms: Mapping[str, WeightForm] = field(default_factory=dict)


def as_trained(plan: ExportPlan, checkpoint: Path, layers: Collection[str]) -> tuple[ExportPlan, TrainedScales]:
    """The plan with the checkpoint's forms, and its scales. layers: names of the model's linear layers.

    Raises CheckpointError: scales of another model; UsageError where settings contradict them.
    """
    scales, forms = read_scales(checkpoint)
    if not forms or not plan.rounds_weights:
        return plan, TrainedScales()
    if unknown := sorted(set(forms) - set(layers)):
        raise CheckpointError(
            f"{checkpoint / SCALES_FILE}: the model has no layer {unknown[0]}; it belongs to another checkpoint"
        )
    decoder = {layer: form for layer, form in forms.items() if not is_vision(layer)}
    precision = "int4" if any(form.bits == 4 for form in decoder.values()) else "int8"
    if plan.decoder.precision != precision:
        logger.warning("%s was trained for %s; as %s it is rounded anew", checkpoint, precision, plan.decoder.precision)
        return plan, TrainedScales()
    if told := sorted(set(FIXED) & plan.settings.model_fields_set):
        raise UsageError(
            f"--set {told[0]}: {checkpoint / SCALES_FILE} decides it: the weights were trained in that form; leave it out"
        )
    blocks = {form.block for form in forms.values()}
    if len(blocks) != 1:
        raise CheckpointError(f"{checkpoint / SCALES_FILE}: layers have blocks of {sorted(blocks)}; expected one size")
    block: Any = blocks.pop()  # GraphPlan judges it
    wide = tuple(sorted({matmul_name(layer) for layer, form in decoder.items() if form.bits == 8}))
    left = tuple(sorted({matmul_name(layer) for layer in layers if layer not in forms}))
    plan = replace(
        plan,
        vision=replace(plan.vision, block=block, exclude=left, int8_inputs=False),
        decoder=replace(plan.decoder, block=block, exclude=left, int8=wide if precision == "int4" else ()),
    )
    return plan, TrainedScales(scales, forms)


def write_rounded_checkpoint(
    folder: Path, checkpoint: Path, model: PreTrainedModel, embedding: Tensor, found: Mapping[str, Quantized]
) -> None:
    """The rounded model in the layout that it was read in, and its scales, in a new folder.

    checkpoint: whose other files are copied. embedding: [V, D] before it was rounded, which stays as it is, and with it a head
    that is tied to it.
    """
    table = model.get_input_embeddings().weight
    (name,) = (name for name, parameter in model.named_parameters() if parameter is table)
    state = {**model.state_dict(), name: embedding}
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = embedding
    with whole_directory(folder, error_type=ExportError) as directory:
        for path in checkpoint.iterdir():
            if path.is_file() and not path.name.endswith(WEIGHTS):
                shutil.copyfile(path, directory / path.name)
        model.save_pretrained(directory, state_dict=state)
        write_scales(
            directory, {layer: part.scales for layer, part in found.items()}, {layer: p.form for layer, p in found.items()}
        )
