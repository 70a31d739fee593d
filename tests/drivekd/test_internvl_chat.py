"""OpenGVLab's original layout, made from a tiny -hf model by the reverse of what drivekd does, is read as that very model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from opened_files import watched_opens
from safetensors.torch import load_file, save_file
from slow_tokenizer import CORPUS, write_slow_tokenizer
from tiny_run import NO_TEACHERS, TinyRun
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from drivekd.errors import CheckpointError
from drivekd.hf_checkpoint import Checkpoint, CheckpointFiles, load_processor, write_processor
from drivekd.models import encode_images, load_model
from drivekd.models.internvl import load_model as load_internvl
from drivekd.models.tiny import SPECIAL_TOKENS, TinySize, tiny_config, write_checkpoint

pytestmark = pytest.mark.numerics

SIZE = TinySize(vision_layers=2, vision_width=32, language_layers=2, language_width=32, image_size_px=56, vocab_size=400)
TEXTS = [*CORPUS[:1], "I'LL go", "1234567", "a  b   c ", "\r\n\n x", "<|im_start|>user\n<img><IMG_CONTEXT></img>", "é é", "…!?\n"]


def in_original_names(weights: dict[str, Tensor], num_vision_layers: int) -> dict[str, Tensor]:
    """OpenGVLab's names of an -hf state dict, with q, k and v of the vision tower in one matrix."""
    left = dict(weights)
    original: dict[str, Tensor] = {}

    def move(new: str, old: str) -> None:
        for suffix in ("", ".weight", ".bias"):
            if old + suffix in left:
                original[new + suffix] = left.pop(old + suffix)

    move("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token")
    move("vision_model.embeddings.position_embedding", "model.vision_tower.embeddings.position_embeddings")
    move("vision_model.embeddings.patch_embedding", "model.vision_tower.embeddings.patch_embeddings.projection")
    for layer in range(num_vision_layers):
        ours, theirs = f"model.vision_tower.encoder.layer.{layer}.", f"vision_model.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            pieces = [left.pop(f"{ours}attention.{letter}_proj.{kind}", None) for letter in "qkv"]
            if pieces[0] is not None:  # the 6B tower has no bias there
                original[f"{theirs}attn.qkv.{kind}"] = torch.cat(pieces)
        for new, old in {
            "attn.proj": "attention.projection_layer",
            "attn.q_norm": "attention.q_norm",
            "attn.k_norm": "attention.k_norm",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "ls1": "lambda_1",
            "ls2": "lambda_2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():
            move(theirs + new, ours + old)
    for index, name in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2")):
        move(f"mlp1.{index}", f"model.multi_modal_projector.{name}")
    for name in list(left):
        if name.startswith("model.language_model."):
            original["language_model.model." + name.removeprefix("model.language_model.")] = left.pop(name)
    move("language_model.lm_head", "lm_head")
    assert not left, list(left)
    return original


def original_config(model: InternVLForConditionalGeneration) -> dict[str, Any]:
    """config.json as OpenGVLab writes it."""
    vision, text = model.config.vision_config, model.config.text_config
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": vision.image_size[0],
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "intermediate_size": vision.intermediate_size,
            "image_size": vision.image_size[0],
            "patch_size": vision.patch_size[0],
            "norm_type": vision.norm_type,
            "layer_norm_eps": vision.layer_norm_eps,
            "qk_normalization": vision.use_qk_norm,
            "qkv_bias": vision.attention_bias,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "drop_path_rate": 0.1,
            "use_flash_attn": True,
        },
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_parameters["rope_theta"],
            "rope_scaling": None,
            "tie_word_embeddings": model.config.tie_word_embeddings,
            "attn_implementation": "flash_attention_2",
        },
    }


def write_original(folder: Path, model: InternVLForConditionalGeneration, *, shards: int = 1) -> None:
    write_slow_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(original_config(model)))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "CLIPFeatureExtractor", "size": 56, "crop_size": 56, "resample": 3})
    )
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    weights = in_original_names(state, model.config.vision_config.num_hidden_layers)
    names = sorted(weights)
    for index in range(shards):
        shard = {name: weights[name].contiguous() for name in names[index::shards]}
        save_file(shard, folder / f"model-{index + 1:05d}-of-{shards:05d}.safetensors", metadata={"format": "pt"})


def tiny_model(folder: Path, **vision: Any) -> InternVLForConditionalGeneration:
    """Lively random weights over the tokenizer in `folder`."""
    config = tiny_config(SIZE, CheckpointFiles(folder).tokenizer)
    tied = vision.pop("tied", True)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    for key, value in vision.items():
        setattr(config.vision_config, key, value)
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


VARIANTS: dict[str, dict[str, Any]] = {
    "1B to 14B": {"tied": False},
    "tied": {"tied": True},
    "38B and 78B": {"tied": False, "use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False},
}


Pair: TypeAlias = tuple[Path, InternVLForConditionalGeneration]


@pytest.fixture(scope="module", params=VARIANTS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, InternVLForConditionalGeneration]:
    """A directory in the original layout, and the model that it was made from."""
    folder = tmp_path_factory.mktemp("original")
    write_slow_tokenizer(folder)
    model = tiny_model(folder, **VARIANTS[request.param])
    write_original(folder, model, shards=2)
    return folder, model


@pytest.fixture
def original(pair: Pair, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pair[0], tmp_path / "original"))


# --- weights --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_bit_for_bit_those_of_the_model_it_was_made_from(pair: Pair, one_thread: None) -> None:
    folder, model = pair
    loaded, processor = load_model(folder).eval(), load_processor(folder)
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 56, 56), dtype=np.float32))
    assert torch.equal(encode_images(loaded, pixels), model.get_image_features(pixel_values=pixels).pooler_output)
    ids = torch.tensor([processor.prompts.prefix(2) + processor.prompts.suffix("What's the light?")])
    logits = loaded(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(logits, model(input_ids=ids, pixel_values=pixels).logits)
    assert logits.std() > 0.1


def test_every_weight_is_there_under_transformers_name(pair: Pair) -> None:
    folder, model = pair
    loaded = dict(load_internvl(folder).named_parameters())
    expected = dict(model.named_parameters())
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], parameter) for name, parameter in expected.items())
    assert loaded[next(iter(loaded))].dtype == torch.float32


def test_weights_may_be_loaded_in_bf16(pair: Pair) -> None:
    assert {parameter.dtype for parameter in load_model(pair[0], dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_what_is_written_is_the_hf_layout(pair: Pair, tmp_path: Path) -> None:
    folder, model = pair
    load_model(folder).save_pretrained(tmp_path)
    write_processor(folder, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "internvl"
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)  # the fast tokenizer alone must do
    ours, theirs = load_processor(tmp_path), load_processor(folder)
    assert (ours.chat, ours.images, ours.model_type) == (theirs.chat, theirs.images, theirs.model_type)
    assert ours.tokenizer.to_str() == theirs.tokenizer.to_str()
    again = dict(load_model(tmp_path).named_parameters())
    assert all(torch.equal(again[name], parameter) for name, parameter in model.named_parameters())


# --- processor ------------------------------------------------------------------------------------------------------


def test_every_file_is_read_once_for_model_and_processor(pair: Pair) -> None:
    folder, _ = pair
    with watched_opens() as opened:
        checkpoint = Checkpoint.open(folder)
        load_model(checkpoint)
        load_processor(checkpoint)
    names = sorted(path.name for path in opened if path.parent == folder and path.suffix == ".json")
    assert {"config.json", "vocab.json", "tokenizer_config.json"} <= set(names)
    assert names == sorted(set(names))


def test_the_processor_is_that_of_the_hf_layout(pair: Pair, tmp_path: Path) -> None:
    folder, model = pair
    write_checkpoint(tmp_path, model, CheckpointFiles(folder).tokenizer)
    ours, theirs = load_processor(folder), load_processor(tmp_path)
    assert (ours.chat, ours.images, ours.model_type) == (theirs.chat, theirs.images, "internvl")
    assert ours.prompts.prefix(2) == theirs.prompts.prefix(2)
    assert ours.prompts.image_token_id == model.config.image_token_id


def test_the_tokenizer_is_transformers_own(pair: Pair) -> None:
    from transformers import AddedToken, Qwen2Tokenizer

    folder = pair[0]
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    reference = Qwen2Tokenizer(vocab=json.loads((folder / "vocab.json").read_text()), merges=merges)
    reference.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = CheckpointFiles(folder).tokenizer
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference(text, add_special_tokens=False)["input_ids"], text
    assert tokenizer.decode(tokenizer.encode(TEXTS[0]).ids) == TEXTS[0]


# --- faults ---------------------------------------------------------------------------------------------------------


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads((folder / name).read_text())
    change(tree)
    (folder / name).write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree["llm_config"].update(architectures=["InternLM2ForCausalLM"]), "InternLM2ForCausalLM"),
        (lambda tree: tree.update(ps_version="v1"), "ps_version is 'v1', expected 'v2'"),
        (lambda tree: tree.update(select_layer=-4), "select_layer is -4"),
        (lambda tree: tree.update(force_image_size=448), "force_image_size is 448, expected 56"),
        (lambda tree: tree.pop("llm_config"), "vision_config and llm_config"),
        (lambda tree: tree["vision_config"].pop("patch_size"), "lacks patch_size"),
    ],
)
def test_another_kind_is_refused_by_name(original: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    edit(original, "config.json", change)
    for load in (load_model, load_processor):
        with pytest.raises(CheckpointError, match=words) as caught:
            load(original)
        assert str(caught.value).startswith(str(original / "config.json"))


def test_a_weight_of_another_layout_is_named(original: Path) -> None:
    path = next(original.glob("*.safetensors"))
    save_file({**load_file(path), "qformer.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weight 'qformer\.weight' is not of InternVL3's original layout"):
        load_model(original)


def test_a_missing_weight_is_named(original: Path) -> None:
    path = next(path for path in original.glob("*.safetensors") if "mlp1.1.weight" in load_file(path))
    save_file({k: v for k, v in load_file(path).items() if k != "mlp1.1.weight"}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing, first model\.multi_modal_projector\.linear_1\.weight"):
        load_model(original)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "config.json"])
def test_a_missing_file_is_named(original: Path, name: str) -> None:
    (original / name).unlink()
    with pytest.raises(CheckpointError, match=str(original)) as caught:
        load_processor(original)
    assert "tokenizer" in str(caught.value) or name in str(caught.value)


def test_added_tokens_that_do_not_continue_the_vocabulary_are_refused(original: Path) -> None:
    def shift(tree: dict[str, Any]) -> None:
        tree["added_tokens_decoder"] = {str(int(key) + 1): value for key, value in tree["added_tokens_decoder"].items()}

    edit(original, "tokenizer_config.json", shift)
    with pytest.raises(CheckpointError, match=r"gives '<\|endoftext\|>' the id"):
        load_processor(original)


def test_a_student_trained_from_the_original_layout_is_one_that_loads(pair: Pair, tiny_run: TinyRun, tmp_path: Path) -> None:
    from drivekd.config import load_config
    from drivekd.distill.training.train import train

    overrides = [f"student.checkpoint={pair[0]}", *NO_TEACHERS, "training.steps=1", "training.checkpoint_every_steps=1"]
    train(load_config(tiny_run.yaml, overrides), tmp_path / "run")
    for folder in (tmp_path / "run" / "final", tmp_path / "run" / "checkpoints" / "step-1"):
        processor, source = load_processor(folder), load_processor(pair[0])
        assert Checkpoint.open(folder).layout == "internvl"
        assert processor.chat == source.chat
        assert processor.images == source.images
        assert processor.prompts.suffix(TEXTS[0]) == source.prompts.suffix(TEXTS[0])
        assert load_model(folder).config.text_config.vocab_size == pair[1].config.text_config.vocab_size
