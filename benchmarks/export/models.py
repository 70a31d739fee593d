"""Checkpoints of published shapes with random weights, in the Hugging Face layout, for the benchmarks of export and decoding.

    internvl3-1b           InternVL3-1B in full: 24 x 896 language model, 151,674 words, 24 x 1024 vision tower of 448 px tiles
    qwen2.5-vl-3b-widths   Qwen2.5-VL-3B's widths (2048 and 11,008; vision 1280), 4 of 36 language and 4 of 32 vision layers
    small                  both depths and widths cut, for seconds

    python -m benchmarks.export.models --work DIR --size internvl3-1b        # writes DIR/<size>

Weights are drawn so that values keep their scale from layer to layer and nothing is vacuous: position embeddings, biases and
norms are no constants, attention is uneven, and the head prefers one token clearly, as a trained model's does. (With independent
rows the best two of 151,674 logits lie so close that quantization flips them, which says nothing of it.) The tokenizer has the
published number of entries: a byte-level BPE whose merges behind the trained ones are made up.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from drivekd.models.tiny import POSITION_STD, QWEN_SPECIAL_TOKENS, SPECIAL_TOKENS, train_tokenizer, write_checkpoint

TEXTS = (
    "What are the important objects in the current scene?",
    "What object should the ego vehicle notice first? Why?",
    "In this scenario, what are safe actions to take for the ego vehicle?",
    "Answer in detail. There is a white van ahead and a pedestrian to the right.",
)
TRAINED_ENTRIES = 600  # of the tokenizer; TEXTS have no more
SHARPNESS = 1.5  # on queries and keys of unit variance: scores then have a standard deviation of 2.25
RESIDUAL_GAIN = (
    0.25  # on what a layer adds: over 24 layers as much as the embedding. With 0.5 int4's errors grow to half of K's range
)
INTERNVL3_1B_TEXT = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864}
INTERNVL3_1B_TOWER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
INTERNVL3_1B_VOCABULARY = 151_674


@dataclass(frozen=True)
class ExportSize:
    """tower, text: settings of the family's vision_config and text_config. tokens: entries of the tokenizer; vocabulary: rows of
    the embedding. camera_size_px: Qwen2.5-VL's camera tile, width and height."""

    family: str
    tower: dict[str, Any]
    text: dict[str, Any]
    tokens: int
    vocabulary: int
    camera_size_px: tuple[int, int] = (448, 252)


QWEN_HEADS = {"num_attention_heads": 16, "num_key_value_heads": 2}
SIZES = {
    "internvl3-1b": ExportSize(
        "internvl", INTERNVL3_1B_TOWER, INTERNVL3_1B_TEXT, INTERNVL3_1B_VOCABULARY, INTERNVL3_1B_VOCABULARY
    ),
    "qwen2.5-vl-3b-widths": ExportSize(
        "qwen2_5_vl",
        {"hidden_size": 1280, "depth": 4, "num_heads": 16, "intermediate_size": 3420, "fullatt_block_indexes": [3]},
        {"hidden_size": 2048, "num_hidden_layers": 4, "intermediate_size": 11_008, **QWEN_HEADS},
        tokens=151_665,
        vocabulary=151_936,
    ),
    "small": ExportSize(
        "internvl",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_px": 112},
        {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
        tokens=2048,
        vocabulary=2048,
    ),
}


def make_checkpoint(work: Path, size: str) -> Path:
    """The checkpoint directory work/<size>, made unless it is there already; weights in bfloat16, as published."""
    folder = work / size
    if (folder / "tokenizer.json").exists():  # written after the weights
        return folder
    shape = SIZES[size]
    qwen = shape.family == "qwen2_5_vl"
    tokenizer = make_tokenizer(shape.tokens, QWEN_SPECIAL_TOKENS if qwen else SPECIAL_TOKENS)
    model = (_qwen if qwen else _internvl)(shape, tokenizer)
    write_checkpoint(folder, enlivened(model), tokenizer, dtype=torch.bfloat16, camera_size_px=shape.camera_size_px)
    return folder


def internvl_config(tower: dict[str, Any], text: dict[str, Any], tokenizer: Tokenizer, vocabulary: int) -> InternVLConfig:
    """InternVL3's configuration at these widths and depths; the head is a matrix of its own, as published for 1B."""
    image_px = tower.get("image_px", 448)
    return InternVLConfig(
        vision_config={
            **{key: value for key, value in tower.items() if key != "image_px"},
            "image_size": [image_px, image_px],
            "patch_size": [14, 14],
            "attention_bias": True,
        },
        text_config={
            **text,
            "model_type": "qwen2",
            "vocab_size": vocabulary,
            "num_key_value_heads": 2,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        },
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=(image_px // 28) ** 2,
        tie_word_embeddings=False,
    )


def _internvl(size: ExportSize, tokenizer: Tokenizer) -> PreTrainedModel:
    return InternVLForConditionalGeneration(internvl_config(size.tower, size.text, tokenizer, size.vocabulary))


def _qwen(size: ExportSize, tokenizer: Tokenizer) -> PreTrainedModel:
    config = Qwen2_5_VLConfig(
        vision_config={**size.tower, "out_hidden_size": size.text["hidden_size"]},
        text_config={
            **size.text,
            "vocab_size": size.vocabulary,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        },
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=True,  # as published for 3B
    )
    return Qwen2_5_VLForConditionalGeneration(config)


# --- weights --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def enlivened(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The same model with every parameter drawn anew: unit variance in, unit variance out."""
    generator = torch.Generator().manual_seed(seed)
    embedding: Tensor = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        if parameter is not model.lm_head.weight or parameter is embedding:
            _draw(name, parameter, generator, is_embedding=parameter is embedding)
    head: Tensor = model.lm_head.weight
    if head is not embedding:  # a token's successor is what follows it
        head.normal_(generator=generator).add_(embedding.roll(1, 0)).mul_(1 / math.sqrt(2 * head.shape[1]))
    return model


def _draw(name: str, parameter: nn.Parameter, generator: torch.Generator, *, is_embedding: bool) -> None:
    if name.endswith(("position_embeddings", "cls_token")):
        parameter.normal_(std=POSITION_STD, generator=generator)
    elif name.endswith(("lambda_1", "lambda_2")):
        parameter.fill_(RESIDUAL_GAIN)
    elif parameter.ndim == 1:
        mean = 1.0 if name.endswith("weight") else 0.0  # a norm's scale, or a bias
        parameter.normal_(mean, 0.1, generator=generator)
    else:
        parameter.normal_(std=1.0 if is_embedding else _gain(name) / math.sqrt(parameter[0].numel()), generator=generator)


def _gain(name: str) -> float:
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return SHARPNESS
    adds = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight"))
    return RESIDUAL_GAIN if adds else 1.0


# --- tokenizer ------------------------------------------------------------------------------------------------------


def make_tokenizer(entries: int, special_tokens: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE of exactly that many entries: those trained on TEXTS first, then made-up pairs and triples of bytes."""
    trained = train_tokenizer(TEXTS * 20, [], min(TRAINED_ENTRIES, entries), special_tokens=special_tokens)
    tree = json.loads(trained.to_str())
    vocabulary, merges = tree["model"]["vocab"], tree["model"]["merges"]
    letters = sorted(token for token in vocabulary if len(token) == 1)
    fresh = (pair for pair in _pairs(letters) if "".join(pair) not in vocabulary)
    for left, right in islice(fresh, entries - len(vocabulary)):
        vocabulary[left + right] = len(vocabulary)
        merges.append([left, right])
    made: Tokenizer = Tokenizer.from_str(json.dumps(tree))
    return made


def _pairs(letters: list[str]) -> Iterator[tuple[str, str]]:
    yield from product(letters, letters)
    for first, second, third in product(letters, letters, letters):
        yield first + second, third


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that the checkpoint's folder is put in; 2 GB")
    parser.add_argument("--size", choices=SIZES, default="internvl3-1b")
    arguments = parser.parse_args()
    print(make_checkpoint(arguments.work, arguments.size))


if __name__ == "__main__":
    main()
