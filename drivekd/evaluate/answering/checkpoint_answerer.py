"""A checkpoint as an answerer: loaded in the wished precision, on the wished device.

Where the checkpoint holds weight_scales.safetensors, it answers with the rounded weights: they are what will run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from drivekd.contract import CONTRACT_FILE
from drivekd.errors import UsageError
from drivekd.files import checkpoint_digest
from drivekd.hf_checkpoint import Checkpoint, load_processor
from drivekd.models import load_model
from drivekd.quantization.form import WeightForm
from drivekd.quantization.linears import linear_layers
from drivekd.quantization.rounded_model import round_model
from drivekd.quantization.scales import check_scales, read_scales

from .answerer import AnswererSettings
from .budgets import Budgets, json_budgets
from .model_answerer import ModelAnswerer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def checkpoint_answerer(checkpoint: Path | Checkpoint, settings: AnswererSettings) -> ModelAnswerer:
    """Load a checkpoint of any family to answer. Raises CheckpointError, UsageError (no such device)."""
    checkpoint = Checkpoint.open(checkpoint)
    device, dtype = resolve_device(settings.device), DTYPES[settings.precision]
    processor, contract = load_processor(checkpoint), checkpoint.contract
    name = str(checkpoint.path)
    scales, forms = read_scales(checkpoint.path)
    model = load_model(checkpoint, dtype=torch.float32 if forms else dtype).eval()
    if forms:
        check_scales(checkpoint.path, scales, forms, linear_layers(model))
        round_model(model, scales, forms)
        name += f" ({told(forms.values())})"
    known = contract.max_new_tokens if contract else {}
    cameras = contract.cameras if contract else ()
    form = None
    if settings.structured:
        from .json_form import JsonForm

        instruction = contract.structured_instruction if contract else ""
        form = JsonForm(processor, int(model.config.text_config.vocab_size), instruction=instruction, cameras=cameras)
        known = json_budgets(known, instruction)
    return ModelAnswerer(
        model.to(device, dtype),
        processor,
        Budgets.chosen(settings.max_new_tokens, known, str(checkpoint.path / CONTRACT_FILE)),
        cameras=cameras,
        batch_size=settings.batch_size,
        name=name,
        digest=checkpoint_digest(checkpoint.path),
        form=form,
    )


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises UsageError naming what there is."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is unknown; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; take auto or cpu")
    return device


def told(forms: Iterable[WeightForm]) -> str:
    """Of the rounded layers of a model: "weights rounded: int4 in blocks of 32, int8 in blocks of 32"."""
    kinds = sorted({(form.bits, form.block) for form in forms})
    return "weights rounded: " + ", ".join(f"int{bits} in blocks of {block}" for bits, block in kinds)
