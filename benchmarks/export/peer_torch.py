"""The checkpoint in torch, for peers that compute there: its linears, its logits. Needs torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .peer_row import LANGUAGE_FOLDER, Logits, Size, Stored

FP16_BITS, FP32_BITS = 16, 32


def language_model(work: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(work / LANGUAGE_FOLDER, dtype=torch.float32).eval()


def logits_of(model: Any) -> Logits:
    @torch.no_grad()
    def logits(ids: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(model(torch.tensor([list(ids)])).logits[0].float().numpy(), np.float32)

    return logits


def linears_of(model: Any) -> dict[str, torch.nn.Linear]:
    """The projections of every layer, without the head."""
    return {name: module for name, module in model.model.named_modules() if name.endswith("_proj")}


def weights_of(model: Any) -> tuple[int, int]:
    """How many weights the linears and the head have."""
    return sum(module.weight.numel() for module in linears_of(model).values()), model.get_input_embeddings().weight.numel()


def size_of(linears: Stored, head: Stored) -> Size:
    return Size(linears, head)


def plain(weights: int, bits: int) -> Stored:
    return Stored(weights, weights * bits, 0, FP32_BITS)


def a_scale_a_row(weights: int, rows: int, bits: int = 8, *, scale_bits: int = FP32_BITS, zero_bits: int = 0) -> Stored:
    return Stored(weights, weights * bits + rows * zero_bits, rows, scale_bits)
