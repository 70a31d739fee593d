"""What is exported, read and judged before the first graph is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from drivekd.contract import Contract
from drivekd.errors import CheckpointError
from drivekd.hf_checkpoint import Checkpoint, load_processor
from drivekd.images import ImageForm
from drivekd.models import family_of
from drivekd.processor import Processor, num_words
from drivekd.runtime.bundle.manifest import ModelInfo

from .checkpoint import CheckpointSource, load_weights, locate_checkpoint, stated_license, weights_sha256
from .prompts import PromptSet, load_prompts
from .quiet import quiet

__all__ = ["Source", "load_source", "weights_sha256"]


@dataclass(frozen=True)
class Source:
    """Everything an export starts from. contract: what training promised, None where nothing says. traces: file of its records'
    hashes, None = there is none. model: fp32, with its own attention. origin: the manifest's `source`."""

    checkpoint: Checkpoint
    processor: Processor
    prompts: PromptSet
    contract: Contract | None
    traces: Path | None
    model: PreTrainedModel
    info: ModelInfo
    origin: dict[str, str]

    @property
    def images(self) -> ImageForm:
        """The size and the normalization that the vision tower takes."""
        return self.processor.images


def load_source(path: Path, prompts: Mapping[str, str] | None) -> Source:
    """Read a checkpoint, a drivekd run or an adapter directory.

    Raises CheckpointError: missing file, other family or text model, weights that are not finite; UsageError: prompts.
    """
    found = locate_checkpoint(path)
    _check_layers(found.checkpoint)
    processor = load_processor(found.checkpoint, adapter=found.adapter)
    prompt_set = load_prompts(found.files, prompts)
    for template in prompt_set.prompts.values():
        processor.prompts.suffix(template)  # refuses chat markers
    with quiet():
        model = load_weights(found).eval()
    _check_finite(path, model)
    info = _model_info(found, model)
    if (needed := num_words(processor.tokenizer)) > info.vocab_size:
        raise CheckpointError(
            f"{found.checkpoint.path}: the tokenizer has {needed} tokens, the model {info.vocab_size} embeddings; they do not "
            "belong together"
        )
    return Source(found.checkpoint, processor, prompt_set, found.contract, found.traces, model, info, found.origin)


def _check_layers(checkpoint: Checkpoint) -> None:
    for part, keys in (("text_config", ("num_hidden_layers",)), ("vision_config", ("num_hidden_layers", "depth"))):
        values = checkpoint.config.get(part)
        for key in keys:
            if isinstance(values, dict) and values.get(key, 1) in (0, None):
                raise CheckpointError(
                    f"{checkpoint.path / 'config.json'}: {part}.{key} is {values[key]}; expected at least one layer"
                )


def _check_finite(path: Path, model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            count = int((~torch.isfinite(parameter)).sum())
            raise CheckpointError(
                f"{path}: {name} has {count} values that are NaN or infinite; the training diverged, take an earlier checkpoint"
            )


def _model_info(found: CheckpointSource, model: PreTrainedModel) -> ModelInfo:
    text = model.config.text_config
    return ModelInfo(
        family=model.config.model_type,
        weights_sha256=weights_sha256(*found.directories),
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        hidden_size=text.hidden_size,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        max_positions=text.max_position_embeddings,
        rotary_axes=family_of(model).rotary_axes,
        license=stated_license(found.directories),
    )
