"""Both families through one face: equal to transformers' own whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import SIZE, Prompts, Tiny, make_tiny, noise_pixels, our_logits, padded_prompts
from torch import Tensor

from drivekd.hf_checkpoint import load_processor
from drivekd.models import encode_images, family_of, load_model, modules_of, rotary_positions
from drivekd.models.qwen2_5_vl import image_grids

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

# fp32 on one thread; other kernels for another batch shape round otherwise: 1e-6 of logits of about 3
LOGITS_ATOL = 1e-5


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
