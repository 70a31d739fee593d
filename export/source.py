"""A checkpoint read and judged, before the first graph is made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import InternVLForConditionalGeneration

from drivekd.digests import file_digest
from drivekd.errors import CheckpointError, ExportError
from drivekd.images import ImageSettings
from drivekd.models.internvl import MODEL_TYPE, load_model
from drivekd.processor import Processor, load_processor
from drivekd.runtime.manifest import ModelInfo

from .prompt_set import PromptSet, load_prompts
from .quiet import quiet


@dataclass(frozen=True)
class Source:
    """Everything an export starts from. model: fp32, with its own attention."""

    processor: Processor
    prompts: PromptSet
    model: InternVLForConditionalGeneration
    info: ModelInfo

    @property
    def images(self) -> ImageSettings:
        """InternVL's square tiles: load_model refused every other family."""
        assert isinstance(self.processor.images, ImageSettings)
        return self.processor.images


def load_source(checkpoint: Path, prompts: Mapping[str, str] | None) -> Source:
    """Read a checkpoint. Raises CheckpointError: missing file, other family, weights that are not finite; UsageError: prompts."""
    processor = load_processor(checkpoint)
    prompt_set = load_prompts(checkpoint, prompts)
    for template in prompt_set.prompts.values():
        processor.prompts.suffix(template)  # refuses chat markers
    with quiet():
        model = load_model(checkpoint).eval()
    _check_finite(checkpoint, model)
    info = _model_info(checkpoint, model)
    if processor.tokenizer.get_vocab_size() > info.vocab_size:
        raise CheckpointError(
            f"{checkpoint}: the tokenizer has {processor.tokenizer.get_vocab_size()} tokens, "
            f"the model {info.vocab_size} embeddings; they do not belong together"
        )
    return Source(processor, prompt_set, model, info)


def _check_finite(checkpoint: Path, model: InternVLForConditionalGeneration) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            count = int((~torch.isfinite(parameter)).sum())
            raise CheckpointError(
                f"{checkpoint}: {name} has {count} values that are NaN or infinite; "
                "the training diverged, take an earlier checkpoint"
            )


def _model_info(checkpoint: Path, model: InternVLForConditionalGeneration) -> ModelInfo:
    text = model.config.text_config
    layer_types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise ExportError(
            f"{checkpoint}: the language model has layers of {', '.join(sorted(layer_types))}; "
            "this version exports full_attention only"
        )
    return ModelInfo(
        family=MODEL_TYPE,
        weights_sha256=weights_sha256(checkpoint),
        num_layers=text.num_hidden_layers,
        num_kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        hidden_size=text.hidden_size,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        max_positions=text.max_position_embeddings,
    )


def weights_sha256(checkpoint: Path) -> str:
    """sha256 over names and digests of the checkpoint's safetensors files: which weights these are, wherever they lie."""
    total = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        total.update(f"{path.name} {file_digest(path)}\n".encode())
    return total.hexdigest()
