"""Random tiny models of both families that say different things about different images."""

from __future__ import annotations

from pathlib import Path

import torch
from family_cases import BUILDERS

from drivekd.models.tiny import TinySize, train_tokenizer, write_checkpoint

SIZE = TinySize(vision_layers=2, vision_width=32, language_layers=2, language_width=32, image_size_px=56)
CORPUS = [
    "What are the important objects in the current scene, and where are they? Signal: red. A white van is near.",
    "The ego vehicle drives at 8 m/s. What should it do next, and why? Brake to a stop. Reason: the signal is red.",
] * 20


def lively_checkpoint(folder: Path, family: str = "internvl", size: TinySize = SIZE) -> Path:
    """At the usual small initialisation a model with tied embeddings repeats its last token whatever it sees, and every test on
    tokens would be vacuous."""
    build, special_tokens = BUILDERS[family]
    tokenizer = train_tokenizer(CORPUS, ["CAM_FRONT", "CAM_BACK"], 400, special_tokens=special_tokens)
    model = build(size, tokenizer, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda" in name:
                parameter.fill_(1.0)
            elif parameter.ndim >= 2 and "embed_tokens" not in name:
                parameter.mul_(6.0)
    write_checkpoint(folder, model, tokenizer, camera_size_px=(84, 56) if family == "qwen2_5_vl" else None)
    return folder
