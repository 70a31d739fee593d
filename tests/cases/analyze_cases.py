"""What the tests of `drivekd analyze` share: a Qwen model that is not square, and cosines the slow way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from family_cases import shaken
from numpy.typing import NDArray
from tiny_run import QUESTIONS

from drivekd.models.tiny import QWEN_SPECIAL_TOKENS, TinySize, build_tiny_qwen, train_tokenizer, write_checkpoint

CPU = torch.device("cpu")
Numbers = NDArray[np.float64]


def write_qwen(folder: Path) -> None:
    """3 x 4 vision tokens an image: not square, and neither side divides 16 evenly for 3."""
    tokenizer = train_tokenizer([*QUESTIONS.values()] * 20, [], 400, special_tokens=QWEN_SPECIAL_TOKENS)
    size = TinySize(vision_layers=2, vision_width=32, language_layers=4, language_width=64)
    write_checkpoint(folder, shaken(build_tiny_qwen(size, tokenizer, seed=0)), tokenizer)


def cosine(a: Numbers, b: Numbers) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def mean_pairwise(vectors: list[Numbers]) -> float:
    return float(np.mean([cosine(a, b) for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j]))
