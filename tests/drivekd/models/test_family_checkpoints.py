"""What a checkpoint of each family holds: its parts and every weight, at the published sizes too; and each fault of it named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import Tiny, noise_pixels, our_logits, padded_prompts
from safetensors.torch import load_file, save_file
from transformers import InternVLConfig, Qwen2_5_VLConfig

from drivekd.errors import CheckpointError
from drivekd.hf_checkpoint import load_processor
from drivekd.models import FAMILIES, Part, encode_images, language_model, load_model, modules_of, num_layers, part
from drivekd.models.internvl import load_model as load_internvl

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

PARTS: tuple[Part, ...] = ("vision_encoder", "projector", "language_model")


# --- parts and weights ----------------------------------------------------------------------------------------------


def test_parts_hold_every_weight_once(tiny: Tiny) -> None:
    by_part = [{id(p) for module in modules_of(tiny.model, name) for p in module.parameters()} for name in PARTS]
    assert sum(map(len, by_part)) == len(set.union(*by_part)) == len(list(tiny.model.parameters()))


def test_the_decoder_has_the_faces_that_distillation_uses(tiny: Tiny) -> None:
    decoder = language_model(tiny.model)
    assert part(tiny.model, "language_model") is decoder
    assert len(decoder.layers) == num_layers(tiny.model) == 3
    assert decoder.layers[0].self_attn.layer_idx == 0
    assert decoder.embed_tokens is tiny.model.get_input_embeddings()
    assert hasattr(decoder, "norm")


def test_a_saved_model_loads_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    again = dict(load_model(tmp_path).named_parameters())
    assert again.keys() == dict(tiny.model.named_parameters()).keys()
    assert all(torch.equal(again[name], parameter) for name, parameter in tiny.model.named_parameters())


def test_weights_may_be_loaded_in_bf16(tiny: Tiny) -> None:
    model = load_model(tiny.folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    embeds = encode_images(model, noise_pixels(tiny.processor, 1).bfloat16())
    assert embeds.dtype == torch.bfloat16


def test_qwens_flat_configuration_is_read(qwen: Tiny, tmp_path: Path) -> None:
    """The published config.json has the language model's settings at the top level, and rope_scaling of type mrope."""
    folder = copied(qwen, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for key in ("model_type", "layer_types", "dtype"):
        text.pop(key, None)
    flat = text | config | {"rope_theta": rope["rope_theta"]}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat["vision_config"] = {key: value for key, value in config["vision_config"].items() if key != "rope_parameters"}
    (folder / "config.json").write_text(json.dumps(flat))
    prompts, pixel_values = padded_prompts(qwen.processor), noise_pixels(qwen.processor, 3)
    published = Tiny(folder, load_model(folder).eval(), load_processor(folder))
    with torch.no_grad():
        logits, expected = (our_logits(each, prompts, pixel_values, prompts.mask.long()) for each in (published, qwen))
    assert torch.equal(logits, expected)


# --- faults ---------------------------------------------------------------------------------------------------------


def copied(tiny: Tiny, folder: Path) -> Path:
    shutil.copytree(tiny.folder, folder)
    return folder


def test_a_missing_weight_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("layers.1.self_attn.q_proj.weight"))
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing, first .*layers\.1\.self_attn\.q_proj\.weight"):
        load_model(folder)


def test_a_missing_shard_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    tiny.model.save_pretrained(folder, max_shard_size="100KB")
    assert load_model(folder).config.model_type == tiny.model.config.model_type
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(CheckpointError, match="1 weight files are missing, first model-00002-of-") as caught:
        load_model(folder)
    assert str(caught.value).startswith(str(folder))


def test_another_models_checkpoint_is_refused_with_the_known_families(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    with pytest.raises(CheckpointError, match="model_type is 'llava'") as caught:
        load_model(folder)
    assert all(repr(name) in str(caught.value) for name in (*FAMILIES, "internvl_chat"))


def test_internvls_own_loader_refuses_qwen(qwen: Tiny) -> None:
    with pytest.raises(CheckpointError, match="model_type is 'qwen2_5_vl', expected internvl"):
        load_internvl(qwen.folder)


# --- the published models -------------------------------------------------------------------------------------------

VISION_300M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "attention_bias": True,
}


def internvl3(**text: Any) -> InternVLConfig:
    """As the config.json of OpenGVLab/InternVL3-*-hf; the head is a matrix of its own in every size."""
    text_config = {"model_type": "qwen2", "vocab_size": 151_674, "tie_word_embeddings": False, **text}
    return InternVLConfig(vision_config=VISION_300M, text_config=text_config, tie_word_embeddings=False)


def qwen2_5_vl(*, tied: bool, **text: Any) -> Qwen2_5_VLConfig:
    """As the config.json of Qwen/Qwen2.5-VL-*-Instruct."""
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
    }
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24]}
    return Qwen2_5_VLConfig(vision_config=vision, text_config={"rope_parameters": rope, **text}, tie_word_embeddings=tied)


def text_size(hidden_size: int, layers: int, heads: int, key_value_heads: int, intermediate_size: int) -> dict[str, int]:
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate_size,
    }


# Qwen's counts are those of the model cards' safetensors metadata (3.75 B, 8.29 B). InternVL3's cards say 0.938 B and 7.94 B, and
# model.safetensors of 1B has 1.88 GB in bf16: two bytes times the number here.
PUBLISHED = {
    "InternVL3-1B": (internvl3(**text_size(896, 24, 14, 2, 4864)), 938_193_024),
    "InternVL3-8B": (internvl3(**text_size(3584, 28, 28, 4, 18_944)), 7_944_373_760),
    "Qwen2.5-VL-3B": (qwen2_5_vl(tied=True, vocab_size=151_936, **text_size(2048, 36, 16, 2, 11_008)), 3_754_622_976),
    "Qwen2.5-VL-7B": (qwen2_5_vl(tied=False, vocab_size=152_064, **text_size(3584, 28, 28, 4, 18_944)), 8_292_166_656),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_sizes(name: str) -> None:
    config, count = PUBLISHED[name]
    with torch.device("meta"):
        model = FAMILIES[config.model_type].model_class(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    by_part = [sum(p.numel() for module in modules_of(model, part) for p in set(module.parameters())) for part in PARTS]
    tied = model.lm_head.weight.numel() if config.tie_word_embeddings else 0
    assert sum(by_part) - tied == count
    assert num_layers(model) == config.text_config.num_hidden_layers
