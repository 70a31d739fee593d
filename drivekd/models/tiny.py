"""Tiny models of both families, made from nothing: the classes and files of InternVL3-1B-hf and Qwen2.5-VL-3B-Instruct at a size
for two CPU cores.

The tokenizer is trained on the corpus; camera names and binned coordinates are tokens of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from drivekd import internvl_chat
from drivekd.hf_checkpoint import CAMERA_FILE
from drivekd.images import PatchSettings
from drivekd.processor import QWEN2_5_VL

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
QWEN_SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
TINY_CAMERA_SIZE_PX = (112, 84)  # 4 x 3 tokens: not square, and windows of 2 x 2 tokens do not divide it
TINY_WINDOW_PX = 56

# A token may be a whole phrase, up to and with its punctuation mark; InternVL3's are words at most. Questions are then 10 tokens
# long instead of 50, which is what lets two cores train a family in minutes. A digit is a token of its own in both.
PHRASE_SPLIT = r"\s*[\r\n]+|\p{N}|[^\p{N}.:?,<>\r\n]+[.:?,]?|[.:?,<>]"

CHAT_TEMPLATE = internvl_chat.CHAT_TEMPLATE

# Qwen2.5-VL's format: a system turn unless one is given, and markers around each image that the template writes itself.
QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# InternVL's own initial values (0.02, 0.1, zero positions) are meant for large widths and long training. Measured on captions of
# the driving world, 420 steps of 64, signal state on held-out frames: 0.40 with them, 0.67 with these but positions at 0.02, 0.99
# with all three.
INITIALIZER_RANGE = 0.06
LAYER_SCALE = 1.0
POSITION_STD = 0.7


@dataclass(frozen=True)
class TinySize:
    """Widths and depths. image_size_px is InternVL's camera tile; patch_size_px divides it into an even number of patches.

    text_model: InternVL's, by transformers' model_type.
    """

    vision_layers: int
    vision_width: int
    language_layers: int
    language_width: int
    attention_heads: int = 4
    image_size_px: int = 112
    patch_size_px: int = 14
    vocab_size: int = 1536
    text_model: str = "qwen2"

    @property
    def tokens_per_image(self) -> int:
        """Pixel shuffle merges 2x2 patches into one vision token."""
        return (self.image_size_px // self.patch_size_px // 2) ** 2


TINY_STUDENT = TinySize(vision_layers=3, vision_width=64, language_layers=4, language_width=64)
TINY_TEACHER = TinySize(vision_layers=3, vision_width=96, language_layers=6, language_width=96)


def train_tokenizer(
    corpus: Iterable[str], words: Sequence[str], vocab_size: int, *, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> Tokenizer:
    """Byte-level BPE over `corpus`; each of `words` (camera names, coordinates) becomes one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PHRASE_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(words),
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(list(words))
    return tokenizer


def tiny_config(size: TinySize, tokenizer: Tokenizer) -> InternVLConfig:
    """An InternVL configuration of that size over that tokenizer."""
    return InternVLConfig(
        vision_config={
            "hidden_size": size.vision_width,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.attention_heads,
            "intermediate_size": 4 * size.vision_width,
            "image_size": [size.image_size_px, size.image_size_px],
            "patch_size": [size.patch_size_px, size.patch_size_px],
            "attention_bias": True,
            "layer_scale_init_value": LAYER_SCALE,
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config={
            "model_type": size.text_model,
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": size.language_width,
            "num_hidden_layers": size.language_layers,
            "num_attention_heads": size.attention_heads,
            "num_key_value_heads": size.attention_heads // 2,
            "intermediate_size": 4 * size.language_width,
            "max_position_embeddings": 1024,
            "sliding_window": None,  # Mistral's would be 4096
            "rope_theta": 10_000.0,
            "initializer_range": INITIALIZER_RANGE,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        },
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=size.tokens_per_image,
        tie_word_embeddings=True,
    )


def build_tiny(size: TinySize, tokenizer: Tokenizer, seed: int) -> InternVLForConditionalGeneration:
    """A freshly initialised model, the same for the same seed.

    transformers initialises position embeddings and the class token with zeros; they are drawn here: zeros would make an
    export test of them vacuous, and leave the vision tower blind to places for its first hundreds of steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(tiny_config(size, tokenizer))
        embeddings = model.model.vision_tower.embeddings
        for parameter in (embeddings.position_embeddings, embeddings.cls_token):
            nn.init.normal_(parameter, std=POSITION_STD)
    return model


def tiny_qwen_config(size: TinySize, tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL configuration of that size over that tokenizer; the last vision layer alone attends to the whole image."""
    half = size.language_width // size.attention_heads // 2
    section = half * 3 // 8  # of half a head's width: 1/4 for time, 3/8 each for row and column, as in Qwen2.5-VL-3B
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_width,
            "num_heads": size.attention_heads,
            "intermediate_size": 4 * size.vision_width,
            "patch_size": size.patch_size_px,
            "window_size": TINY_WINDOW_PX,
            "fullatt_block_indexes": [size.vision_layers - 1],
            "out_hidden_size": size.language_width,
            "initializer_range": INITIALIZER_RANGE,
        },
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": size.language_width,
            "num_hidden_layers": size.language_layers,
            "num_attention_heads": size.attention_heads,
            "num_key_value_heads": size.attention_heads // 2,
            "intermediate_size": 4 * size.language_width,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "mrope_section": [half - 2 * section, section, section]},
            "initializer_range": INITIALIZER_RANGE,
            "bos_token_id": None,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        },
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_tiny_qwen(size: TinySize, tokenizer: Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model, the same for the same seed. tokenizer: trained with QWEN_SPECIAL_TOKENS."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration(tiny_qwen_config(size, tokenizer))


def write_checkpoint(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    camera_size_px: tuple[int, int] = TINY_CAMERA_SIZE_PX,
) -> None:
    """Write weights and processor in the Hugging Face layout of InternVL3-1B-hf or Qwen2.5-VL-3B-Instruct.

    camera_size_px: Qwen2.5-VL's camera tile, width and height; InternVL's is within the model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    if model.config.model_type == QWEN2_5_VL:
        _write_qwen_processor(directory, model.config, camera_size_px)
    else:
        _write_internvl_processor(directory, model.config)


_TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def _write_internvl_processor(directory: Path, config: InternVLConfig) -> None:
    _write_json(directory / "tokenizer_config.json", internvl_chat.hf_tokenizer_config(_TOKENIZER_CONFIG))
    size_px = config.vision_config.image_size[0]
    preprocessor = internvl_chat.hf_preprocessor({"vision_config": {"image_size": size_px}}, {})
    _write_json(directory / "preprocessor_config.json", preprocessor)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_qwen_processor(directory: Path, config: Qwen2_5_VLConfig, camera_size_px: tuple[int, int]) -> None:
    width, height = camera_size_px
    vision = config.vision_config
    _write_json(directory / "tokenizer_config.json", _TOKENIZER_CONFIG | {"tokenizer_class": "Qwen2Tokenizer"})
    _write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": list(PatchSettings.mean),
            "image_std": list(PatchSettings.std),
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
        },
    )
    _write_json(directory / CAMERA_FILE, {"width_px": width, "height_px": height})
    (directory / "chat_template.jinja").write_text(QWEN_CHAT_TEMPLATE, encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
