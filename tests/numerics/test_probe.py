"""The probe's maps and their gradients equal eager attention's, and the model itself stays SDPA's to the bit.

B = 3 samples of different lengths, S positions
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_run import TinyRun
from torch import Tensor
from transformers import AttentionMaskInterface, InternVLForConditionalGeneration

from drivekd.data.batch import Batch, Collator
from drivekd.data.readers import read_samples
from drivekd.models import probe
from drivekd.models.internvl import load_model
from drivekd.models.probe import CAPTURE_ATTENTION, capture_attention, mean_attention
from drivekd.processor import load_processor

LAYERS = (0, 2)
Load = Callable[[str], InternVLForConditionalGeneration]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def right_padded(tiny_run: TinyRun) -> Batch:
    """One sample of each capability: 4, 4 and 8 vision tokens, three lengths."""
    return collated(tiny_run, slice(3))


def collated(tiny_run: TinyRun, which: slice) -> Batch:
    return Collator(load_processor(tiny_run.student))(read_samples(tiny_run.folder / "train.json")[which])


def left_padded(batch: Batch) -> Batch:
    """The same samples with padding in front, where causality alone does not hide it."""

    def flip(values: Tensor) -> Tensor:
        shifts = (~batch.attention_mask).sum(1)
        return torch.stack([row.roll(int(shift)) for row, shift in zip(values, shifts, strict=True)])

    names = ("input_ids", "labels", "attention_mask", "vision_mask", "prompt_mask")
    return replace(batch, **{name: flip(getattr(batch, name)) for name in names})


@pytest.fixture(params=["right", "left"])
def batch(request: pytest.FixtureRequest, right_padded: Batch) -> Batch:
    return right_padded if request.param == "right" else left_padded(right_padded)


@pytest.fixture(scope="module")
def load(tiny_run: TinyRun) -> Load:
    return lambda attention: load_model(tiny_run.student, attention=attention).train()


def forward(model: InternVLForConditionalGeneration, batch: Batch, **options: Any) -> Any:
    return model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        attention_mask=batch.attention_mask.long(),
        use_cache=False,
        **options,
    )


def captured(model: InternVLForConditionalGeneration, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
    with capture_attention(model.model.language_model.layers, LAYERS) as maps:
        logits = forward(model, batch).logits
    return logits, maps


def real_rows(batch: Batch, values: Tensor) -> Tensor:
    """Only rows of real tokens: what a padded position attends to is anyone's choice."""
    return values[batch.attention_mask]


def eager_maps(model: InternVLForConditionalGeneration, batch: Batch) -> dict[int, Tensor]:
    attentions = forward(model, batch, output_attentions=True).attentions
    return {layer: attentions[layer].mean(1) for layer in LAYERS}


def loss_of(maps: dict[int, Tensor], batch: Batch) -> Tensor:
    """Any smooth function of all real rows."""
    return torch.stack([real_rows(batch, maps[layer]).square().sum() for layer in LAYERS]).sum()


def gradients(model: InternVLForConditionalGeneration) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- equal to eager, and invisible ----------------------------------------------------------------------------------


def test_maps_equal_eager_attention(load: Load, batch: Batch) -> None:
    _, maps = captured(load(CAPTURE_ATTENTION), batch)
    expected = eager_maps(load("eager"), batch)
    assert set(maps) == set(LAYERS)
    for layer in LAYERS:
        assert maps[layer].shape == (3, batch.input_ids.shape[1], batch.input_ids.shape[1])
        # 1e-6: fp32, probabilities up to 1; layer 2 also sees SDPA's rounding of two layers
        torch.testing.assert_close(real_rows(batch, maps[layer]), real_rows(batch, expected[layer]), rtol=0, atol=1e-6)


def test_maps_are_causal_blind_to_padding_and_sum_to_one(load: Load, batch: Batch) -> None:
    _, maps = captured(load(CAPTURE_ATTENTION), batch)
    for layer in LAYERS:
        real = batch.attention_mask[:, :, None] & batch.attention_mask[:, None, :]
        attended = maps[layer].detach() * real
        assert float(attended.triu(1).abs().max()) == 0.0
        assert float(real_rows(batch, maps[layer].detach() - attended).abs().max()) == 0.0  # no real row looks at padding
        torch.testing.assert_close(real_rows(batch, attended).sum(-1), torch.ones(batch.num_tokens), rtol=0, atol=1e-6)


def test_the_maps_say_something(load: Load, batch: Batch) -> None:
    """Uniform attention would pass the tests above with any mistake in q and k."""
    _, maps = captured(load(CAPTURE_ATTENTION), batch)
    longest = int(batch.attention_mask.sum(1).argmax())
    last_row = maps[2][longest, -1].detach()  # the longest sample has no padding
    assert float(last_row.max()) > 3 / len(last_row)


def test_the_models_output_is_sdpas(load: Load, batch: Batch) -> None:
    expected = forward(load("sdpa"), batch).logits
    logits, _ = captured(load(CAPTURE_ATTENTION), batch)
    assert torch.equal(logits, expected)  # the very same kernel on the very same tensors
    assert torch.equal(forward(load(CAPTURE_ATTENTION), batch).logits, expected)  # outside of a block, too


def test_a_batch_without_padding_is_captured_right(load: Load, tiny_run: TinyRun) -> None:
    """transformers then hands over no mask at all."""
    alone = collated(tiny_run, slice(2, 3))
    assert bool(alone.attention_mask.all())
    _, maps = captured(load(CAPTURE_ATTENTION), alone)
    for layer, expected in eager_maps(load("eager"), alone).items():
        torch.testing.assert_close(maps[layer], expected, rtol=0, atol=1e-6)


# --- gradients ------------------------------------------------------------------------------------------------------


def test_the_gradient_through_maps_equals_eagers(load: Load, batch: Batch) -> None:
    ours, eager = load(CAPTURE_ATTENTION), load("eager")
    loss_of(captured(ours, batch)[1], batch).backward()
    loss_of(eager_maps(eager, batch), batch).backward()
    found, expected = gradients(ours), gradients(eager)
    reached = {name for name, value in expected.items() if float(value.abs().max()) > 0}
    assert reached <= set(found)
    assert any("vision_tower" in name for name in reached)
    for name in reached:
        # 1e-5 of the largest entry: fp32 through three layers in another order of sums
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5 * float(expected[name].abs().max()) + 1e-9)


def test_layer_0s_map_reaches_only_what_is_before_it(load: Load, right_padded: Batch) -> None:
    """METHOD section 5: perception's backward is nearly free."""
    model = load(CAPTURE_ATTENTION)
    _, maps = captured(model, right_padded)
    maps[0].square().sum().backward()
    reached = {name.split(".layers.")[1] for name in gradients(model) if "language_model.layers" in name}
    assert reached == {"0.input_layernorm.weight"} | {
        f"0.self_attn.{which}_proj.{kind}" for which in "qk" for kind in ("weight", "bias")
    }


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_captures_once_with_the_same_gradient(load: Load, right_padded: Batch) -> None:
    """Trap (b): the backward pass runs the forward again."""
    plain, checkpointed = load(CAPTURE_ATTENTION), load(CAPTURE_ATTENTION)
    checkpointed.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = []
    for model in (plain, checkpointed):
        with capture_attention(model.model.language_model.layers, LAYERS) as maps:
            logits = forward(model, right_padded).logits
            before = dict(maps)
            (loss_of(maps, right_padded) + real_rows(right_padded, logits).square().mean()).backward()
            kept.append(all(maps[layer] is before[layer] for layer in LAYERS) and len(maps) == len(LAYERS))
    assert kept == [True, True]
    found, expected = gradients(checkpointed), gradients(plain)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)  # the same operations twice


# --- the mask, and tidiness -----------------------------------------------------------------------------------------


def test_without_the_mask_registration_padding_would_be_seen(
    load: Load, right_padded: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap (a). This test shows that the registration is what keeps the others green."""
    batch = left_padded(right_padded)
    expected = forward(load("sdpa"), batch).logits
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, CAPTURE_ATTENTION)
    logits, _ = captured(load(CAPTURE_ATTENTION), batch)
    assert float(real_rows(batch, (logits - expected).detach().abs()).max()) > 1e-3


def test_the_mask_reaches_the_capture(load: Load, right_padded: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor | None] = []

    def spy(query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float) -> Tensor:
        masks.append(attention_mask)
        return mean_attention(query, key, attention_mask, scaling)

    monkeypatch.setattr(probe, "mean_attention", spy)
    captured(load(CAPTURE_ATTENTION), left_padded(right_padded))
    assert len(masks) == len(LAYERS)
    assert all(mask is not None for mask in masks)


def test_nothing_stays_on_the_model(load: Load, right_padded: Batch) -> None:
    model = load(CAPTURE_ATTENTION)
    before = [sorted(vars(layer.self_attn)) for layer in model.model.language_model.layers]
    captured(model, right_padded)
    with pytest.raises(RuntimeError, match="stop"), capture_attention(model.model.language_model.layers, LAYERS):
        raise RuntimeError("stop")
    assert [sorted(vars(layer.self_attn)) for layer in model.model.language_model.layers] == before


def test_a_model_with_another_attention_is_named(load: Load, right_padded: Batch) -> None:
    with pytest.raises(KeyError, match=r"layers \[0, 2\] were not captured: load the model with attention="):
        captured(load("sdpa"), right_padded)


# --- mean_attention by itself ---------------------------------------------------------------------------------------


def heads(seed: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_bool_additive_and_no_mask_agree() -> None:
    query, key = heads(0), heads(1)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    additive = torch.zeros(1, 1, 5, 5).masked_fill(~allowed, torch.finfo(torch.float32).min)
    expected = mean_attention(query, key, None, 0.5)
    assert torch.equal(mean_attention(query, key, allowed, 0.5), expected)
    torch.testing.assert_close(mean_attention(query, key, additive, 0.5), expected, rtol=0, atol=1e-7)


def test_half_precision_heads_are_compared_in_fp32_also_under_autocast() -> None:
    query, key = heads(0, dtype=torch.bfloat16), heads(1, dtype=torch.bfloat16)
    expected = mean_attention(query.float(), key.float(), None, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_attention(query, key, None, 0.5)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_the_mean_over_heads_is_all_that_is_left() -> None:
    query, key = heads(0), heads(1)
    one_by_one = [mean_attention(query[:, h : h + 1], key[:, h : h + 1], None, 0.5) for h in range(3)]
    torch.testing.assert_close(mean_attention(query, key, None, 0.5), torch.stack(one_by_one).mean(0), rtol=0, atol=1e-7)
