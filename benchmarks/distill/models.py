"""Models for `step.py`: random weights at the size of the claim, and at a size for seconds.

    real    student 24 layers x 448, three teachers 28 x 896, vision towers 24 x 512, six 448 px images, S = 1,834
    small   student 3 x 64, teachers 4 x 96, vision towers 2 x 32, two 112 px images, S = 96

Nothing is trained. Weights are drawn so that attention is uneven: query and key projections give scores of a standard deviation
of about 2 instead of the usual 1e-2, at which every map is uniform and every signal near zero. The three teachers have language
models of their own and one vision tower and projector between them, as capability teachers made by fine-tuning the language model
alone have; `separate_vision` gives each its own. The tokenizer is a small one made here (4,096 entries at most, against
InternVL3's 151,674): logits, and what not computing them saves, are thereby smaller than in the field.

    benchmark folder:  student/  teacher-<capability>/  records.json  frames.json  images/  benchmark.json (written last)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from drivekd.models.tiny import SPECIAL_TOKENS, write_checkpoint
from drivekd.sample import CAPABILITIES

PATCH_PX = 14
SHARPNESS = 1.5  # on unit-variance queries and keys: scores then have a standard deviation of 1.5² = 2.25
VOCABULARY = 4096
WORDS = (
    "the ego vehicle drives slowly ahead of a white van and two parked cars on the left lane near the crossing what should it do "
    "next because traffic light is red pedestrian waits at right side brake keep speed turn change moving object front back "
    "camera important consider which why probability collision safe action taken status bus truck bicycle barrier cone"
)


@dataclass(frozen=True)
class LanguageSize:
    """A Qwen2 decoder; heads of width / heads."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    intermediate: int


@dataclass(frozen=True)
class VisionSize:
    """An InternViT tower over square tiles; pixel shuffle merges 2x2 patches into one vision token."""

    layers: int
    width: int
    heads: int
    image_px: int

    @property
    def tokens(self) -> int:
        return (self.image_px // PATCH_PX // 2) ** 2


@dataclass(frozen=True)
class BenchmarkSize:
    """num_images: per record; length: S, a record's tokens; num_frames, questions: of frames.json."""

    vision: VisionSize
    student: LanguageSize
    teacher: LanguageSize
    num_images: int
    length: int
    num_frames: int
    questions: int

    def cut(self, layers: int) -> BenchmarkSize:
        """The same widths with this many layers everywhere: what a time per layer is extrapolated from."""
        return replace(
            self,
            vision=replace(self.vision, layers=layers),
            student=replace(self.student, layers=layers),
            teacher=replace(self.teacher, layers=layers),
        )


SIZES = {
    "real": BenchmarkSize(
        vision=VisionSize(layers=24, width=512, heads=8, image_px=448),
        student=LanguageSize(layers=24, width=448, heads=7, kv_heads=1, intermediate=2432),
        teacher=LanguageSize(layers=28, width=896, heads=14, kv_heads=2, intermediate=4864),
        num_images=6,
        length=1834,
        num_frames=9,
        questions=8,
    ),
    "small": BenchmarkSize(
        vision=VisionSize(layers=2, width=32, heads=4, image_px=112),
        student=LanguageSize(layers=3, width=64, heads=4, kv_heads=1, intermediate=256),
        teacher=LanguageSize(layers=4, width=96, heads=6, kv_heads=2, intermediate=384),
        num_images=2,
        length=96,
        num_frames=2,
        questions=3,
    ),
}


@dataclass(frozen=True)
class Recipe:
    """All that a benchmark folder follows from. num_records: records.json, capabilities in turn. drivelm: source of frames.json,
    None = made-up frames; questions: kept per frame, evenly spaced over the frame's own, 0 = all."""

    size: BenchmarkSize
    seed: int = 0
    separate_vision: bool = False
    num_records: int = 3
    drivelm: Path | None = None
    questions: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"drivelm": str(self.drivelm)}, indent=2)


@dataclass(frozen=True)
class BenchmarkFolder:
    """Where everything lies."""

    path: Path

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def teachers(self) -> dict[str, Path]:
        return {name: self.path / f"teacher-{name}" for name in CAPABILITIES}

    @property
    def records(self) -> Path:
        return self.path / "records.json"

    @property
    def frames(self) -> Path:
        return self.path / "frames.json"


# --- models ---------------------------------------------------------------------------------------------------------


def write_models(folder: BenchmarkFolder, recipe: Recipe) -> None:
    """Write the student's and the teachers' checkpoints, which share a tokenizer."""
    size, tokenizer = recipe.size, _tokenizer(_corpus(recipe))
    write_checkpoint(folder.student, build_model(size.vision, size.student, tokenizer, recipe.seed), tokenizer)
    shared: dict[str, torch.Tensor] = {}
    for number, path in enumerate(folder.teachers.values(), start=1):
        teacher = build_model(size.vision, size.teacher, tokenizer, recipe.seed + number)
        if not recipe.separate_vision:
            own = {
                name: value
                for name, value in teacher.state_dict().items()
                if "language_model" not in name and "lm_head" not in name
            }
            shared = shared or own
            teacher.load_state_dict(shared, strict=False)
        write_checkpoint(path, teacher, tokenizer)


def build_model(vision: VisionSize, language: LanguageSize, tokenizer: Tokenizer, seed: int) -> InternVLForConditionalGeneration:
    """fp32, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(_config(vision, language, tokenizer))
        embeddings = model.model.vision_tower.embeddings
        for parameter in (embeddings.position_embeddings, embeddings.cls_token):  # zeros by default: one place like another
            nn.init.normal_(parameter, std=0.7)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(SHARPNESS)
            layer.self_attn.k_proj.weight.mul_(SHARPNESS)
    return model


def _config(vision: VisionSize, language: LanguageSize, tokenizer: Tokenizer) -> InternVLConfig:
    """initializer_range 1 / sqrt(width): unit variance in, unit variance out."""
    return InternVLConfig(
        vision_config={
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "intermediate_size": 4 * vision.width,
            "image_size": [vision.image_px, vision.image_px],
            "patch_size": [PATCH_PX, PATCH_PX],
            "attention_bias": True,
            "layer_scale_init_value": 1.0,
            "initializer_range": 1 / math.sqrt(vision.width),
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": language.width,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "intermediate_size": language.intermediate,
            "max_position_embeddings": 8192,
            "rope_theta": 1_000_000.0,
            "initializer_range": 1 / math.sqrt(language.width),
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        },
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=vision.tokens,
        tie_word_embeddings=True,
    )


def _tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Byte-level BPE over words: about as many tokens a sentence as a large model's tokenizer makes of it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _corpus(recipe: Recipe) -> list[str]:
    """A record's text begins with a word without a space before it: each word comes in both ways."""
    texts = [f" {WORDS}", *WORDS.split(), "user\n", "assistant\n"] * 50
    return texts + ([recipe.drivelm.read_text(encoding="utf-8")] if recipe.drivelm else [])
