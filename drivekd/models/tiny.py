"""Tiny InternVL models, made from nothing: the same classes and files as InternVL3-1B-hf at a size for two CPU cores.

The tokenizer is trained on the corpus; camera names and binned coordinates are tokens of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")

# A token may be a whole phrase, up to and with its punctuation mark; InternVL3's are words at most. Questions are then 10 tokens
# long instead of 50, which is what lets two cores train a family in minutes. A digit is a token of its own in both.
PHRASE_SPLIT = r"\s*[\r\n]+|\p{N}|[^\p{N}.:?,<>\r\n]+[.:?,]?|[.:?,<>]"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# InternVL's own initial values (0.02, 0.1, zero positions) are meant for large widths and long training. Measured on captions of
# the driving world, 420 steps of 64, signal state on held-out frames: 0.40 with them, 0.67 with these but positions at 0.02, 0.99
# with all three.
INITIALIZER_RANGE = 0.06
LAYER_SCALE = 1.0
POSITION_STD = 0.7


@dataclass(frozen=True)
class TinySize:
    """Widths and depths. image_size_px is the camera tile; patch_size_px divides it into an even number of patches."""

    vision_layers: int
    vision_width: int
    language_layers: int
    language_width: int
    attention_heads: int = 4
    image_size_px: int = 112
    patch_size_px: int = 14
    vocab_size: int = 1536

    @property
    def tokens_per_image(self) -> int:
        """Pixel shuffle merges 2x2 patches into one vision token."""
        return (self.image_size_px // self.patch_size_px // 2) ** 2


TINY_STUDENT = TinySize(vision_layers=3, vision_width=64, language_layers=4, language_width=64)
TINY_TEACHER = TinySize(vision_layers=3, vision_width=96, language_layers=6, language_width=96)


def train_tokenizer(corpus: Iterable[str], words: Sequence[str], vocab_size: int) -> Tokenizer:
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
        special_tokens=list(SPECIAL_TOKENS),
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
            "model_type": "qwen2",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": size.language_width,
            "num_hidden_layers": size.language_layers,
            "num_attention_heads": size.attention_heads,
            "num_key_value_heads": size.attention_heads // 2,
            "intermediate_size": 4 * size.language_width,
            "max_position_embeddings": 1024,
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


def write_checkpoint(
    directory: Path, model: InternVLForConditionalGeneration, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write weights and processor in the Hugging Face layout of InternVL3-1B-hf."""
    directory.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    size_px = model.config.vision_config.image_size[0]
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
        },
    )
    _write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": False,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": size_px, "width": size_px},
        },
    )
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
