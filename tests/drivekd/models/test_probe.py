"""Captured maps and their gradients equal eager attention's, in both families, and the model's own work stays SDPA's.

B = 3 samples of different lengths, S positions. Two of the traps of docs/method.md, "Capture of attention maps", are here,
padding and gradient checkpointing; FSDP2 needs two processes and has its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_run import Pair, TinyRun, frame_samples, load_pair
from torch import Tensor
from transformers import AttentionMaskInterface, PreTrainedModel

from drivekd.data.batch import Batch, Collator
from drivekd.data.packs import frame_packs, single_packs
from drivekd.data.readers import read_samples
from drivekd.hf_checkpoint import load_processor
from drivekd.models import attention, encode_images, language_model, load_model, rotary_positions
from drivekd.models.decoder import run_decoder
from drivekd.models.probe import CAPTURE_ATTENTION, Captured, MapRequest, capture

LAYERS = (0, 2)
WHOLE = {layer: MapRequest() for layer in LAYERS}
ATOL = 1e-6  # fp32, probabilities up to 1; layer 2 also sees SDPA's rounding of two layers
Load = Callable[[str], PreTrainedModel]

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def collate(kind_run: TinyRun) -> Collator:
    return Collator(load_processor(kind_run.student))


@pytest.fixture(scope="module")
def load(kind_run: TinyRun) -> Load:
    return lambda attention: load_model(kind_run.student, attention=attention).train()


@pytest.fixture(scope="module")
def right_padded(kind_run: TinyRun, collate: Collator) -> Batch:
    """One sample of each capability, three lengths."""
    batch = collate(single_packs(read_samples(kind_run.folder / "train.json")[:3]))
    assert len(set(batch.token_mask.sum(1).tolist())) == 3
    return batch


def left_padded(batch: Batch) -> Batch:
    """The same samples with padding in front, where causality alone does not hide it."""

    def turn(values: Tensor) -> Tensor:
        shifts = (~batch.token_mask).sum(1).tolist()
        return torch.stack([row.roll(shift) for row, shift in zip(values, shifts, strict=True)])

    names = ("input_ids", "labels", "segment", "vision_mask", "prompt_mask")
    moved: dict[str, Tensor] = {name: turn(getattr(batch, name)) for name in names}
    return replace(batch, positions=torch.stack([turn(axis) for axis in batch.positions]), **moved)


@pytest.fixture(params=["right", "left"])
def batch(request: pytest.FixtureRequest, right_padded: Batch) -> Batch:
    return right_padded if request.param == "right" else left_padded(right_padded)


@pytest.fixture
def forward(collate: Collator) -> Callable[..., Any]:
    def run(model: PreTrainedModel, batch: Batch, **options: Any) -> Any:
        """transformers' own way: a mask [B, S], from which the library makes what the attention function gets."""
        paths = [path for images in batch.images for path in images]
        features = encode_images(model, collate.pixel_values(paths, "here")).flatten(0, 1)
        embeds = model.get_input_embeddings()(batch.input_ids).masked_scatter(batch.vision_mask[..., None], features)
        return language_model(model)(
            inputs_embeds=embeds,
            attention_mask=batch.token_mask.long(),
            position_ids=rotary_positions(model, batch.positions),
            use_cache=False,
            **options,
        )

    return run


Forward = Callable[..., Any]


def captured(
    forward: Forward, model: PreTrainedModel, batch: Batch, requests: Mapping[int, MapRequest] = WHOLE, **options: Any
) -> tuple[Any, Captured]:
    output = None
    with capture(language_model(model).layers, requests, **options) as found:
        output = forward(model, batch)
    return output, found


def eager_maps(forward: Forward, model: PreTrainedModel, batch: Batch) -> dict[int, Tensor]:
    maps = forward(model, batch, output_attentions=True).attentions
    return {layer: maps[layer].mean(1) for layer in LAYERS}


def real_rows(batch: Batch, values: Tensor) -> Tensor:
    """Only rows of real tokens: what a padded position attends to is anyone's choice."""
    return values[batch.token_mask]


def loss_of(maps: Mapping[int, Tensor], batch: Batch) -> Tensor:
    """Any smooth function of all real rows."""
    return torch.stack([real_rows(batch, maps[layer]).square().sum() for layer in LAYERS]).sum()


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def some_rows(batch: Batch) -> MapRequest:
    """Three rows a sample, out of order, and two columns."""
    length = batch.input_ids.shape[1]
    return MapRequest(torch.tensor([[length - 1, 9, 12]] * len(batch.input_ids)), torch.tensor([[4, 2]] * len(batch.input_ids)))


# --- equal to eager, and invisible ----------------------------------------------------------------------------------


def test_maps_equal_eager_attention(load: Load, forward: Forward, batch: Batch) -> None:
    _, found = captured(forward, load(CAPTURE_ATTENTION), batch)
    expected = eager_maps(forward, load("eager"), batch)
    assert set(found.attention) == set(LAYERS)
    for layer in LAYERS:
        assert found.attention[layer].shape == (3, batch.input_ids.shape[1], batch.input_ids.shape[1])
        ours, theirs = (real_rows(batch, maps[layer]) for maps in (found.attention, expected))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)
    last_row = found.attention[2][int(batch.token_mask.sum(1).argmax()), -1].detach()  # the longest sample has no padding
    assert float(last_row.max()) > 3 / len(last_row), "uniform attention would equal eager's with any mistake in q and k"


def test_chosen_rows_are_the_whole_maps(load: Load, forward: Forward, batch: Batch) -> None:
    model, request = load(CAPTURE_ATTENTION), some_rows(batch)
    assert request.rows is not None and request.columns is not None
    _, whole = captured(forward, model, batch)
    _, some = captured(forward, model, batch, {0: request, 2: request})
    for layer in LAYERS:
        rows = torch.stack([whole.attention[layer][b][row] for b, row in enumerate(request.rows)])
        expected = torch.stack([rows[b][:, column] for b, column in enumerate(request.columns)])
        real = batch.token_mask.gather(1, request.rows)
        torch.testing.assert_close(some.attention[layer][real], expected[real], rtol=0, atol=ATOL)


def test_the_models_output_is_eagers_and_sdpas(load: Load, forward: Forward, batch: Batch) -> None:
    """With chosen rows SDPA does the layer's work, to the bit; a whole map is made together with the output, to rounding."""
    sdpa, eager = (forward(load(name), batch).last_hidden_state for name in ("sdpa", "eager"))
    model, request = load(CAPTURE_ATTENTION), some_rows(batch)
    beside, _ = captured(forward, model, batch, {0: request, 2: request})
    together, _ = captured(forward, model, batch)
    assert torch.equal(beside.last_hidden_state, sdpa)
    assert torch.equal(forward(model, batch).last_hidden_state, sdpa)  # outside of a block, too
    for other in (sdpa, eager):
        found = real_rows(batch, together.last_hidden_state)
        torch.testing.assert_close(found, real_rows(batch, other), rtol=0, atol=1e-5)  # fp32 behind three layers, values of 3


def test_hidden_states_are_the_layers_outputs(load: Load, forward: Forward, batch: Batch) -> None:
    expected = forward(load("sdpa"), batch, output_hidden_states=True).hidden_states
    _, found = captured(forward, load(CAPTURE_ATTENTION), batch, {}, hidden=(0, 1))
    assert set(found.hidden) == {0, 1}
    assert found.attention == {}
    for layer, value in found.hidden.items():
        assert torch.equal(value, expected[layer + 1])  # hidden_states[0] are the embeddings


# --- trap (a): the mask ---------------------------------------------------------------------------------------------


def test_maps_are_causal_blind_to_padding_and_sum_to_one(load: Load, forward: Forward, batch: Batch) -> None:
    _, found = captured(forward, load(CAPTURE_ATTENTION), batch)
    real = batch.token_mask[:, :, None] & batch.token_mask[:, None, :]
    for layer in LAYERS:
        whole = found.attention[layer].detach()
        attended = whole * real
        assert bool(whole.isfinite().all())
        assert float(attended.triu(1).abs().max()) == 0.0
        assert float(real_rows(batch, whole - attended).abs().max()) == 0.0  # no real row looks at padding
        torch.testing.assert_close(real_rows(batch, attended).sum(-1), torch.ones(batch.num_tokens), rtol=0, atol=ATOL)


def test_without_the_mask_registration_padding_would_be_seen(
    load: Load, forward: Forward, right_padded: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This shows that the registration is what keeps the others green."""
    batch = left_padded(right_padded)
    expected = forward(load("eager"), batch).last_hidden_state
    found, _ = captured(forward, load(CAPTURE_ATTENTION), batch)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, CAPTURE_ATTENTION)
    without, _ = captured(forward, load(CAPTURE_ATTENTION), batch)
    assert float(real_rows(batch, (found.last_hidden_state - expected).detach().abs()).max()) < 1e-5
    assert float(real_rows(batch, (without.last_hidden_state - expected).detach().abs()).max()) > 1e-2


def test_a_packs_mask_reaches_the_capture(kind_run: TinyRun, collate: Collator, load: Load) -> None:
    """run_decoder hands its mask over as it is: maps of a pack are eager attention's under that mask."""
    batch = collate(frame_packs(frame_samples(kind_run, [3, 2]), collate.num_tokens, 4096, seed=0))
    assert batch.attention_mask is not None
    paths = [path for images in batch.images for path in images]

    def run(model: PreTrainedModel, mask: Tensor) -> Tensor:
        features = encode_images(model, collate.pixel_values(paths, "here")).flatten(0, 1)
        return run_decoder(model, batch.input_ids, batch.vision_mask, features, mask, batch.positions)

    ours, eager = load(CAPTURE_ATTENTION), load("eager")
    with capture(language_model(ours).layers, WHOLE) as found:
        run(ours, batch.attention_mask)
    seen: dict[int, Tensor] = {}
    for layer in LAYERS:
        module = language_model(eager).layers[layer].self_attn
        module.register_forward_hook(lambda module, _, output: seen.update({module.layer_idx: output[1].mean(1)}))
    run(eager, torch.zeros(batch.attention_mask.shape).masked_fill(~batch.attention_mask, -1e9))  # eager adds its mask
    for layer in LAYERS:
        torch.testing.assert_close(found.attention[layer], seen[layer], rtol=0, atol=ATOL)
    assert not bool(found.attention[2][~batch.attention_mask[:, 0]].any())


# --- gradients ------------------------------------------------------------------------------------------------------


def test_the_gradient_through_maps_equals_eagers(load: Load, forward: Forward, batch: Batch) -> None:
    ours, eager = load(CAPTURE_ATTENTION), load("eager")
    loss_of(captured(forward, ours, batch)[1].attention, batch).backward()
    loss_of(eager_maps(forward, eager, batch), batch).backward()
    found, expected = gradients(ours), gradients(eager)
    reached = {name for name, value in expected.items() if float(value.abs().max()) > 0}
    assert reached <= set(found)
    assert any("vis" in name for name in reached)
    scale = max(float(value.abs().max()) for value in expected.values())
    for name in reached:
        # 1e-5 of the largest entry: fp32 through three layers in another order of sums. A key's bias moves no softmax: what is
        # left of its gradient is rounding
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5 * largest + 1e-8 * scale)


def test_layer_0s_map_reaches_only_what_is_before_it(load: Load, forward: Forward, right_padded: Batch) -> None:
    """docs/method.md, "Capture of attention maps": perception's backward is nearly free."""
    model, request = load(CAPTURE_ATTENTION), some_rows(right_padded)
    for requests in ({0: MapRequest()}, {0: request}):
        model.zero_grad()
        _, found = captured(forward, model, right_padded, requests)
        found.attention[0].square().sum().backward()
        reached = {name.split(".layers.")[1] for name in gradients(model) if "language_model.layers" in name}
        first = language_model(model).layers[0]
        before = {name for name, _ in first.named_parameters() if name.startswith(("self_attn.q_", "self_attn.k_"))}
        assert reached == {"0.input_layernorm.weight"} | {f"0.{name}" for name in before}


# --- trap (b): gradient checkpointing -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["whole", "rows", "hidden"])
def test_gradient_checkpointing_captures_once_with_the_same_gradient(
    load: Load, forward: Forward, right_padded: Batch, kind: str
) -> None:
    """The backward pass runs the forward again, once for each of the losses; what was captured first stays."""
    plain, checkpointed = load(CAPTURE_ATTENTION), load(CAPTURE_ATTENTION)
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    request = MapRequest() if kind == "whole" else some_rows(right_padded)
    requests, hidden = ({}, LAYERS) if kind == "hidden" else (dict.fromkeys(LAYERS, request), ())
    for model in (plain, checkpointed):
        with capture(language_model(model).layers, requests, hidden=hidden) as found:
            output = forward(model, right_padded).last_hidden_state
            first = {**found.attention, **{("hidden", layer): value for layer, value in found.hidden.items()}}
            torch.stack([value.float().square().sum() for value in first.values()]).sum().backward(retain_graph=True)
            real_rows(right_padded, output).square().mean().backward()
        kept = {**found.attention, **{("hidden", layer): value for layer, value in found.hidden.items()}}
        assert len(kept) == len(LAYERS)
        assert all(kept[key] is value for key, value in first.items())
    ours, expected = gradients(checkpointed), gradients(plain)
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)  # the same operations twice


def test_a_checkpointed_step_is_the_plain_step(kind_run: TinyRun) -> None:
    """Whole maps, rows and cross-entropy together, four backward passes over one graph."""
    chunks = [single_packs(read_samples(kind_run.folder / "train.json")[:3])]
    (losses, plain), (other_losses, checkpointed) = (
        load_pair(kind_run, "signals.mixing=released", f"student.gradient_checkpointing={flag}").gradients(chunks)
        for flag in ("false", "true")
    )
    assert losses == other_losses
    assert all(torch.equal(checkpointed[name], plain[name]) for name in plain)


# --- early exit -----------------------------------------------------------------------------------------------------


def calls_of(model: PreTrainedModel) -> list[str]:
    """Filled as attention projections and MLPs of the decoder layers are called."""
    calls: list[str] = []
    for layer in language_model(model).layers:
        for name, module in (("v", layer.self_attn.v_proj), ("o", layer.self_attn.o_proj), ("mlp", layer.mlp)):
            label = f"{layer.self_attn.layer_idx}.{name}"
            module.register_forward_hook(lambda *_, label=label: calls.append(label))
    return calls


@torch.no_grad()
@pytest.mark.parametrize("kind", ["whole", "rows"])
@pytest.mark.parametrize("last", [0, 1])
def test_a_pass_ends_inside_the_last_wanted_layer(
    load: Load, forward: Forward, right_padded: Batch, kind: str, last: int
) -> None:
    model = load(CAPTURE_ATTENTION)
    request = MapRequest() if kind == "whole" else some_rows(right_padded)
    requests = dict.fromkeys(range(last + 1), request)
    _, expected = captured(forward, model, right_padded, requests)
    calls = calls_of(model)
    output, found = captured(forward, model, right_padded, requests, stop_after_last=True)
    assert output is None  # the rest of the block was left out
    assert calls == [f"{layer}.{name}" for layer in range(last) for name in ("v", "o", "mlp")] + [f"{last}.v"]
    for layer in requests:
        torch.testing.assert_close(found.attention[layer], expected.attention[layer], rtol=0, atol=ATOL)


@torch.no_grad()
@pytest.mark.parametrize(("maps", "hidden", "ran"), [((), (0,), 1), ((0,), (1,), 2), ((1,), (1,), 2), ((1,), (0,), 1)])
def test_early_exit_waits_for_maps_and_hidden_states(
    load: Load, forward: Forward, right_padded: Batch, maps: tuple[int, ...], hidden: tuple[int, ...], ran: int
) -> None:
    model = load(CAPTURE_ATTENTION)
    calls = calls_of(model)
    requests = {layer: MapRequest() for layer in maps}
    _, found = captured(forward, model, right_padded, requests, hidden=hidden, stop_after_last=True)
    assert set(found.attention) == set(maps)
    assert set(found.hidden) == set(hidden)
    assert sum("mlp" in call for call in calls) == ran


# --- tidiness -------------------------------------------------------------------------------------------------------


def test_nothing_stays_on_the_model(load: Load, forward: Forward, right_padded: Batch) -> None:
    model = load(CAPTURE_ATTENTION)
    layers = language_model(model).layers

    def state() -> list[Any]:
        return [(sorted(vars(layer.self_attn)), len(layer._forward_hooks)) for layer in layers]

    before = state()
    captured(forward, model, right_padded, hidden=(1,))
    with torch.no_grad():
        captured(forward, model, right_padded, stop_after_last=True)
    with pytest.raises(RuntimeError, match="stop"), capture(layers, WHOLE, hidden=(0,)):
        raise RuntimeError("stop")
    assert state() == before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_was_released_is_not_kept_again(load: Load, forward: Forward, right_padded: Batch, checkpointing: bool) -> None:
    """A step lets go of its maps before the backward passes, which under checkpointing make them once more."""
    model = load(CAPTURE_ATTENTION)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with capture(language_model(model).layers, WHOLE, hidden=(0,)) as found:
        forward(model, right_padded)
        loss = loss_of(found.attention, right_padded) + found.hidden[0].square().sum()
        found.release()
        loss.backward()
    assert found == Captured(released=True)
    assert gradients(model)


def test_a_model_with_another_attention_is_named(load: Load, forward: Forward, right_padded: Batch) -> None:
    with pytest.raises(KeyError, match=r"layers \[0, 2\] were not captured: load the model with attention="):
        captured(forward, load("sdpa"), right_padded)


def test_nothing_wanted_costs_nothing(kind_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain fine-tuning runs SDPA alone: no map is made that nobody reads."""

    def never(*_: object) -> Tensor:
        raise AssertionError("a map was made")

    for name in ("_weights", "_row_weights"):
        monkeypatch.setattr(attention, name, never)
    pair: Pair = load_pair(kind_run, "teachers={}", "data.unlabelled=[]", "training.unlabelled_batch_size=0")
    losses, _ = pair.gradients([single_packs(read_samples(kind_run.folder / "train.json")[:2])])
    assert losses["ce"] > 0
