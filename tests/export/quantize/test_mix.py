"""What 8 bits save is foreseen from one pass, and spent where it saves most."""

from __future__ import annotations

import pytest
import torch
from tiny_run import TinyRun
from torch import Tensor

from drivekd.export.quantize.frames import Frames, read_frames
from drivekd.export.quantize.mix import MatMulCost, chosen_for_eight, foreseen_costs, mix_rows
from drivekd.export.quantize.weights import image_features
from drivekd.export.source.source import Source, load_source
from drivekd.models.decoder import run_decoder
from drivekd.quantization.form import WeightForm, quantized
from drivekd.quantization.layers import set_weight, weight_of
from drivekd.quantization.linears import linear_layers, matmul_name

COSTS = [
    MatMulCost("layers.0.mlp.down_proj", 100, {4: 0.9, 8: 0.0}),
    MatMulCost("layers.1.mlp.down_proj", 100, {4: 0.2, 8: 0.0}),
    MatMulCost("lm_head", 800, {4: 1.0, 8: 0.0}),
]


def test_bytes_go_where_they_save_most() -> None:
    assert chosen_for_eight(COSTS, 4.5, 32) == ()
    assert chosen_for_eight(COSTS, 4.9, 32) == ("layers.0.mlp.down_proj",)
    assert chosen_for_eight(COSTS, 5.3, 32) == ("layers.0.mlp.down_proj", "layers.1.mlp.down_proj")
    assert chosen_for_eight(COSTS, 8.5, 32) == ("layers.0.mlp.down_proj", "layers.1.mlp.down_proj", "lm_head")
    assert chosen_for_eight(COSTS, 4.3, 32) == ()


def test_the_table_says_what_has_eight() -> None:
    rows = mix_rows(COSTS, ["lm_head"])
    names = ["lm_head", "layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]
    assert [(row[0], row[-1]) for row in rows] == list(zip(names, "844", strict=True))
    many = [MatMulCost(f"layers.{number}.mlp.down_proj", 1, {4: 1.0, 8: 0.0}) for number in range(40)]
    assert mix_rows(many, ["layers.39.mlp.down_proj"])[-1][0] == "28 more, together"


@pytest.fixture
def source(family_run: TinyRun) -> Source:
    return load_source(family_run.student, None)


@pytest.fixture
def frames(family_run: TinyRun, source: Source) -> Frames:
    return read_frames(family_run.folder / "train.json", source.processor)


@torch.no_grad()
def log_probabilities(source: Source, frames: Frames) -> Tensor:
    parts = []
    for batch in frames.chosen:
        features = image_features(source.model, frames, batch)
        hidden = run_decoder(source.model, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)
        logits: Tensor = source.model.lm_head(hidden[batch.token_mask & ~batch.vision_mask])
        parts.append(logits.log_softmax(-1))
    return torch.cat(parts)


@pytest.mark.numerics
def test_what_is_foreseen_is_what_is_lost(source: Source, frames: Frames) -> None:
    """The divergence of the model with one matrix rounded, measured, follows the forecast from matrix to matrix."""
    costs = {cost.name: cost for cost in foreseen_costs(source.model, frames, 32)}
    linears = linear_layers(source.model)
    exact = log_probabilities(source, frames)
    tokens = sum(batch.num_tokens for batch in frames.chosen)
    foreseen, measured = [], []
    for name, cost in costs.items():
        parts = [layer for layer in linears if matmul_name(layer) == name]
        before = {layer: weight_of(linears[layer]).clone() for layer in parts}
        for layer in parts:
            set_weight(linears[layer], quantized(before[layer], WeightForm(4, 32)).dequantized())
        found = log_probabilities(source, frames)
        for layer in parts:
            set_weight(linears[layer], before[layer])
        assert cost.losses[8] < 0.02 * cost.losses[4], "steps are a sixteenth, their squares a 256th"
        measured.append(float((exact.exp() * (exact - found)).sum()) / tokens)
        foreseen.append(cost.losses[4])
    logs = torch.tensor([foreseen, measured]).log()
    assert float(torch.corrcoef(logs)[0, 1]) > 0.8, (foreseen, measured)


@pytest.mark.numerics
def test_looking_changes_nothing(source: Source, frames: Frames) -> None:
    before = {name: parameter.clone() for name, parameter in source.model.named_parameters()}
    state = torch.get_rng_state()
    first, again = (foreseen_costs(source.model, frames, 32) for _ in range(2))
    assert first == again
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(parameter, before[name]) for name, parameter in source.model.named_parameters())
    assert all(parameter.grad is None for parameter in source.model.parameters())
