"""Checkpoints with weight_scales.safetensors: one that was trained for few bits says in which form its weights serve, an export
takes that as it is; and an export can leave its rounded model as such a checkpoint, for training to go on from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from drivekd.errors import CheckpointError, ExportError, UsageError
from drivekd.files import whole_directory
from drivekd.hf_checkpoint import write_promised
from drivekd.log import logger
from drivekd.quantization.form import Quantized, WeightForm
from drivekd.quantization.linears import is_vision, matmul_name
from drivekd.quantization.scales import SCALES_FILE, check_scales, read_scales, write_scales

from .settings import ExportPlan
from .source.source import Source

FIXED = ("vision", "block", "exclude", "int8", "bits", "budget_mb", "int8_inputs")  # settings that such a checkpoint decides
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")  # ends of names that are not copied


@dataclass(frozen=True)
class TrainedScales:
    """By layer; empty where the checkpoint has none, or they are of another precision."""

    scales: Mapping[str, Tensor] = field(default_factory=dict)
    forms: Mapping[str, WeightForm] = field(default_factory=dict)


def as_trained(plan: ExportPlan, folder: Path, layers: Mapping[str, nn.Module]) -> tuple[ExportPlan, TrainedScales]:
    """The plan with a checkpoint's forms, and its scales. folder: where weight_scales.safetensors is, if there is one.
    layers: the model's linear layers by name.

    Raises CheckpointError: scales of another model; UsageError where settings contradict them.
    """
    scales, forms = read_scales(folder)
    if not forms or not plan.rounds_weights:
        return plan, TrainedScales()
    check_scales(folder, scales, forms, layers)
    decoder, vision = ({layer: f for layer, f in forms.items() if is_vision(layer) == wanted} for wanted in (False, True))
    if plan.decoder.precision != (precision := _precision(decoder)):
        logger.warning("%s was trained for %s; as %s it is rounded anew", folder, precision, plan.decoder.precision)
        return plan, TrainedScales()
    if told := sorted(set(FIXED) & plan.settings.model_fields_set):
        raise UsageError(
            f"--set {told[0]}: {folder / SCALES_FILE} decides it: the weights were trained in that form; leave it out"
        )
    left = tuple(sorted({matmul_name(layer) for layer in layers if layer not in forms}))
    block: Any = next(iter(forms.values())).block
    fixed = {"block": block, "exclude": left, "int8_inputs": False}
    plan = replace(
        plan,
        vision=replace(plan.vision, precision=_precision(vision), int8=_wide(vision), **fixed),
        decoder=replace(plan.decoder, int8=_wide(decoder), **fixed),
    )
    for layer, linear in layers.items():
        weight: Any = linear.weight
        if plan.form_of(layer, weight[0].numel()) != forms.get(layer):
            raise CheckpointError(f"{folder / SCALES_FILE}: {layer} has another block than others; expected {block} everywhere")
    return plan, TrainedScales(scales, forms)


def _precision(forms: Mapping[str, WeightForm]) -> str:
    return "int4" if any(form.bits == 4 for form in forms.values()) else "int8"


def _wide(forms: Mapping[str, WeightForm]) -> tuple[str, ...]:
    """MatMuls of 8 bits where others have 4."""
    wide = {matmul_name(layer) for layer, form in forms.items() if form.bits == 8}
    return tuple(sorted(wide)) if _precision(forms) == "int4" else ()


def write_rounded_checkpoint(folder: Path, source: Source, embedding: Tensor, found: Mapping[str, Quantized]) -> None:
    """The rounded model in the layout that it was read in, and its scales, in a new folder.

    source: whose model is rounded and whose other files are copied; what training promised may be an adapter's. embedding: [V, D]
    before it was rounded, which stays as it is, and with it a head that is tied to it.
    """
    model = source.model
    table = model.get_input_embeddings().weight
    (name,) = (name for name, parameter in model.named_parameters() if parameter is table)
    state = {**model.state_dict(), name: embedding}
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = embedding
    with whole_directory(folder, error_type=ExportError) as directory:
        for path in source.checkpoint.path.iterdir():
            if path.is_file() and not path.name.endswith(WEIGHTS):
                shutil.copyfile(path, directory / path.name)
        if source.contract is not None:
            write_promised(source.checkpoint, directory, source.contract)
        if source.traces is not None:
            shutil.copyfile(source.traces, directory / source.traces.name)
        model.save_pretrained(directory, state_dict=state)
        write_scales(
            directory, {layer: part.scales for layer, part in found.items()}, {layer: p.form for layer, p in found.items()}
        )
