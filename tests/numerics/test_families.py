"""Both families through one face: equal to transformers' own whole model, and every fault of a checkpoint named."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import InternVLConfig, PreTrainedModel, Qwen2_5_VLConfig

from drivekd.errors import CheckpointError
from drivekd.models import (
    FAMILIES,
    Part,
    encode_images,
    family_of,
    language_model,
    load_model,
    modules_of,
    num_layers,
    part,
    rotary_positions,
)
from drivekd.models.internvl import load_model as load_internvl
from drivekd.models.qwen2_5_vl import image_grids
from drivekd.models.tiny import (
    QWEN_SPECIAL_TOKENS,
    SPECIAL_TOKENS,
    TinySize,
    build_tiny,
    build_tiny_qwen,
    train_tokenizer,
    write_checkpoint,
)
from drivekd.processor import Processor, load_processor

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = TinySize(vision_layers=3, vision_width=32, language_layers=3, language_width=64, image_size_px=56)
PARTS: tuple[Part, ...] = ("vision_encoder", "projector", "language_model")
BUILDERS = {"internvl": (build_tiny, SPECIAL_TOKENS), "qwen2_5_vl": (build_tiny_qwen, QWEN_SPECIAL_TOKENS)}
# fp32 on one thread; other kernels for another batch shape round otherwise: 1e-6 of logits of about 3
LOGITS_ATOL = 1e-5


@dataclass(frozen=True)
class Tiny:
    """A checkpoint of one family with lively weights, loaded."""

    folder: Path
    model: PreTrainedModel
    processor: Processor


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny") / "qwen")


def make_tiny(family: str, folder: Path) -> Tiny:
    build, special_tokens = BUILDERS[family]
    tokenizer = train_tokenizer(["What is it? A red light. Yes. No."] * 20, [], 400, special_tokens=special_tokens)
    model = build(SIZE, tokenizer, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, attention is uniform: positions would not be seen
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    write_checkpoint(folder, model, tokenizer)
    return Tiny(folder, load_model(folder).eval(), load_processor(folder))


def noise_pixels(processor: Processor, count: int, seed: int = 0) -> Tensor:
    images = np.random.default_rng(seed).integers(0, 256, (count, 50, 90, 3), dtype=np.uint8)
    return torch.from_numpy(np.stack([processor.normalize(processor.resize(image)) for image in images]))


def vision_arguments(pixel_values: Tensor, is_image: Tensor) -> dict[str, Tensor]:
    """What the family's own class wants of images."""
    if pixel_values.ndim == 4:
        return {"pixel_values": pixel_values}
    return {
        "pixel_values": pixel_values.flatten(0, 3),
        "image_grid_thw": image_grids(pixel_values, merge=2),
        "mm_token_type_ids": is_image.int(),
    }


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_image_embeddings_are_the_models_own(tiny: Tiny, count: int) -> None:
    pixel_values = noise_pixels(tiny.processor, count)
    assert pixel_values.shape == (count, *tiny.processor.images.pixel_shape)
    arguments = vision_arguments(pixel_values, torch.zeros(0))
    arguments.pop("mm_token_type_ids", None)
    with torch.no_grad():
        expected = tiny.model.get_image_features(**arguments).pooler_output
        embeds = encode_images(tiny.model, pixel_values)
    assert embeds.shape == (count, tiny.processor.chat.tokens_per_image, SIZE.language_width)
    assert torch.equal(embeds, torch.stack(list(expected)))


@pytest.mark.parametrize("camera_size_px", [(112, 56), (28, 84), (140, 140)])
def test_qwens_tower_is_told_the_images_shape(qwen: Tiny, camera_size_px: tuple[int, int]) -> None:
    processor = load_processor(qwen.folder, camera_size_px=camera_size_px)
    width, height = camera_size_px
    pixel_values = noise_pixels(processor, 2)
    with torch.no_grad():
        embeds = encode_images(qwen.model, pixel_values)
        grid = torch.tensor([[1, height // 14, width // 14]] * 2)
        expected = qwen.model.get_image_features(pixel_values.reshape(-1, 1176), grid).pooler_output
    assert torch.equal(embeds, torch.stack(list(expected)))
    assert embeds.shape[1] == processor.chat.tokens_per_image == width * height // 28**2


def test_an_image_does_not_see_its_neighbours(tiny: Tiny) -> None:
    """Images are cached one by one and batched as they come."""
    pixel_values = noise_pixels(tiny.processor, 3)
    with torch.no_grad():
        together = encode_images(tiny.model, pixel_values)
        alone = torch.cat([encode_images(tiny.model, image[None]) for image in pixel_values])
    torch.testing.assert_close(together, alone, rtol=0, atol=LOGITS_ATOL)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_gradients_reach_every_weight_before_the_language_model(tiny: Tiny) -> None:
    model = load_model(tiny.folder)
    weight = torch.randn(SIZE.language_width, generator=torch.Generator().manual_seed(0))
    (encode_images(model, noise_pixels(tiny.processor, 2)) * weight).sum().backward()
    for name in ("vision_encoder", "projector"):
        parameters = [p for module in modules_of(model, name) for p in module.parameters()]
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in parameters), name
    assert all(p.grad is None for module in modules_of(model, "language_model") for p in module.parameters())


# --- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_images", [0, 1, 2, 6])
@pytest.mark.parametrize("camera_size_px", [(112, 84), (84, 112), (28, 28), (140, 28)])
def test_qwens_positions_are_the_models_own(qwen: Tiny, camera_size_px: tuple[int, int], num_images: int) -> None:
    processor = load_processor(qwen.folder, camera_size_px=camera_size_px)
    ids = processor.prompts.prefix(num_images)
    is_image = torch.tensor([ids]) == processor.prompts.image_token_id
    width, height = camera_size_px
    grid = torch.tensor([[1, height // 14, width // 14]] * num_images)
    expected, deltas = qwen.model.model.get_rope_index(torch.tensor([ids]), is_image.int(), image_grid_thw=grid)
    positions = processor.prefix_positions(ids)
    assert positions.dtype == np.int64
    assert np.array_equal(positions, expected[:, 0].numpy())
    assert positions.max() + 1 - len(ids) == int(deltas)  # where transformers lets the text go on


def test_internvls_positions_count(tmp_path: Path) -> None:
    tiny = make_tiny("internvl", tmp_path / "model")
    ids = tiny.processor.prompts.prefix(2)
    assert np.array_equal(tiny.processor.prefix_positions(ids), np.arange(len(ids))[None])


def test_rotary_positions_have_the_decoders_shape(tiny: Tiny) -> None:
    axes = family_of(tiny.model).rotary_axes
    positions = torch.arange(axes * 2 * 5).reshape(axes, 2, 5)
    taken = rotary_positions(tiny.model, positions)
    assert torch.equal(taken.reshape(-1), positions.reshape(-1))
    assert taken.shape == ((3, 2, 5) if axes == 3 else (2, 5))


# --- the whole model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Two prompts of other lengths and numbers of images, padded on the right."""

    ids: Tensor  # [B, S]
    mask: Tensor  # [B, S] bool
    positions: Tensor  # [A, B, S]
    is_image: Tensor  # [B, S] bool


def padded_prompts(processor: Processor) -> Prompts:
    prompts = processor.prompts
    asked = [(1, "What is it?", "Yes."), (2, "A red light. What is it? A red light.", "No. A red light.")]
    rows, positions = [], []
    for num_images, question, answer in asked:
        prefix = prompts.prefix(num_images)
        text = prompts.suffix(question) + prompts.answer(answer)
        axes = processor.prefix_positions(prefix)  # [A, P]
        following = axes.max() + 1 + np.arange(len(text))
        rows.append(prefix + text)
        positions.append(np.concatenate([axes, np.broadcast_to(following, (len(axes), len(text)))], axis=1))
    length = max(map(len, rows))
    assert len(rows[0]) < length, "the test wants padding"
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    stacked = np.stack([np.pad(axes, ((0, 0), (0, length - axes.shape[1]))) for axes in positions], axis=1)
    return Prompts(ids, mask, torch.from_numpy(stacked), (ids == prompts.image_token_id) & mask)


def our_logits(tiny: Tiny, prompts: Prompts, pixel_values: Tensor, attention_mask: Any) -> Tensor:
    """As the distiller runs a model: embeddings, image embeddings put in, decoder, head."""
    embeds = tiny.model.get_input_embeddings()(prompts.ids)  # [B, S, D]
    embeds = embeds.masked_scatter(prompts.is_image[..., None], encode_images(tiny.model, pixel_values))
    hidden = language_model(tiny.model)(
        inputs_embeds=embeds,
        attention_mask=attention_mask,
        position_ids=rotary_positions(tiny.model, prompts.positions),
        use_cache=False,
    ).last_hidden_state
    return tiny.model.lm_head(hidden)  # type: ignore[no-any-return]


def attention_masks(mask: Tensor) -> dict[str, Any]:
    """The same mask in the three forms that the decoders take."""
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    pairs = (causal & mask[:, None, :])[:, None]  # [B, 1, S, S]
    return {"[B, S]": mask.long(), "[B, 1, S, S]": pairs, "by kind": {"full_attention": pairs}}


@torch.no_grad()
@pytest.mark.parametrize("form", ["[B, S]", "[B, 1, S, S]", "by kind"])
def test_pieces_give_the_whole_models_logits(tiny: Tiny, form: str) -> None:
    prompts, pixel_values = padded_prompts(tiny.processor), noise_pixels(tiny.processor, 3)
    arguments = vision_arguments(pixel_values, prompts.is_image)
    expected = tiny.model(input_ids=prompts.ids, attention_mask=prompts.mask.long(), use_cache=False, **arguments).logits
    logits = our_logits(tiny, prompts, pixel_values, attention_masks(prompts.mask)[form])
    torch.testing.assert_close(logits[prompts.mask], expected[prompts.mask], rtol=0, atol=LOGITS_ATOL)
    assert expected[prompts.mask].std() > 0.1, "a model that says nothing compares equal to any"


@torch.no_grad()
def test_plain_causal_attention_needs_no_mask(tiny: Tiny) -> None:
    prompts, pixel_values = padded_prompts(tiny.processor), noise_pixels(tiny.processor, 3)
    masked = our_logits(tiny, prompts, pixel_values, prompts.mask.long())
    plain = our_logits(tiny, prompts, pixel_values, {"full_attention": None})
    torch.testing.assert_close(plain[prompts.mask], masked[prompts.mask], rtol=0, atol=LOGITS_ATOL)


@torch.no_grad()
def test_images_positions_and_masks_are_seen(tiny: Tiny) -> None:
    """Without this, the test of equality could pass on a model that ignores them."""
    prompts, pixel_values = padded_prompts(tiny.processor), noise_pixels(tiny.processor, 3)
    mask = prompts.mask.long()
    logits = our_logits(tiny, prompts, pixel_values, mask)
    counted = Prompts(prompts.ids, prompts.mask, torch.arange(mask.shape[1]).expand_as(prompts.positions), prompts.is_image)
    others = {
        "images": our_logits(tiny, prompts, pixel_values.flip(0), mask),
        "mask": our_logits(tiny, prompts, pixel_values, mask * (torch.arange(mask.shape[1]) != 3)),
    }
    if family_of(tiny.model).rotary_axes == 3:
        others["positions"] = our_logits(tiny, counted, pixel_values, mask)
    for what, other in others.items():
        assert (other - logits)[prompts.mask].abs().max() > 100 * LOGITS_ATOL, what


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
