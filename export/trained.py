"""A checkpoint that was trained for few bits says itself in which form its weights serve: an export takes that as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from drivekd.errors import CheckpointError, UsageError
from drivekd.log import logger
from drivekd.quantization.form import WeightForm
from drivekd.quantization.linears import is_vision, matmul_name
from drivekd.quantization.scales import SCALES_FILE, read_scales

from .settings import ExportPlan

FIXED = ("block", "exclude", "int8", "int8_inputs")  # settings that such a checkpoint decides


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
