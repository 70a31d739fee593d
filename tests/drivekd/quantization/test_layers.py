"""A tower of layers, rounded one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from drivekd.quantization.form import WeightForm
from drivekd.quantization.layers import Call, Stage, input_groups, recorded, round_stages, round_to_nearest

WIDTH, FORM = 64, WeightForm(4, 32)


class Layer(nn.Module):
    """Two linear layers of one input, one behind them, and a residual; gives a tuple where transformers once did."""

    def __init__(self, *, gives_tuple: bool) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.gives_tuple = gives_tuple

    def forward(self, hidden_states: Tensor, scale: float, *, shift: Tensor) -> Any:
        normed = hidden_states / hidden_states.norm(dim=-1, keepdim=True) * scale
        output = hidden_states + self.down(torch.sigmoid(self.gate(normed)) * self.up(normed)) + shift
        return (output,) if self.gives_tuple else output


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer(gives_tuple=number % 2 == 1) for number in range(3)])

    def forward(self, hidden: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            output = layer(hidden, 8.0, shift=torch.full((WIDTH,), 0.1 * number))
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(WIDTH, WIDTH, generator=generator) * 0.2 + torch.eye(WIDTH)
    return [torch.randn(1, tokens, WIDTH, generator=generator) @ mixed for tokens in (200, 300)]


def stages(tower: Tower, calls: list[list[Call]]) -> list[Stage]:
    return [
        Stage(layer, {f"layers.{number}.{name}": child for name, child in layer.named_children()}, made)
        for number, (layer, made) in enumerate(zip(tower.layers, calls, strict=True))
    ]


@torch.no_grad()
def rounded_tower(forms: dict[str, WeightForm]) -> tuple[Tower, dict[str, Any]]:
    tower = Tower()
    with recorded(list(tower.layers)) as (calls, hidden):
        for sample in inputs():
            tower(sample)
    found = round_stages(stages(tower, calls), list(hidden), [state.clone() for state in hidden], forms)
    return tower, found


FORMS = {f"layers.{number}.{name}": FORM for number in range(3) for name in ("gate", "up", "down")}


@torch.no_grad()
def test_a_call_is_repeated_as_it_was() -> None:
    tower = Tower()
    with recorded(list(tower.layers)) as (calls, hidden):
        expected = [tower(sample) for sample in inputs()]
    for sample, state in enumerate(hidden):
        for layer, made in zip(tower.layers, calls, strict=True):
            state = made[sample](layer, state)
        assert torch.equal(state, expected[sample])


def test_layers_of_one_input_are_rounded_together_and_in_order() -> None:
    tower = Tower()
    with recorded(list(tower.layers)) as (calls, hidden):
        tower(inputs()[0])
    first = stages(tower, calls)[0]
    backwards = dict(reversed(list(first.linears.items())))
    assert input_groups(first, backwards, hidden[0]) == [["layers.0.gate", "layers.0.up"], ["layers.0.down"]]


@torch.no_grad()
def test_the_tower_computes_with_what_is_returned_and_nearer_than_rounding() -> None:
    exact, (tower, found) = Tower(), rounded_tower(FORMS)
    assert set(found) == set(FORMS)
    for name, child in tower.layers.named_modules():
        if f"layers.{name}" in found:
            assert torch.equal(child.weight, found[f"layers.{name}"].dequantized())
    nearest = Tower()
    children = {f"layers.{name}": child for name, child in nearest.layers.named_modules()}
    round_to_nearest({name: children[name] for name in FORMS}, FORMS)
    errors = [sum(float((model(x) - exact(x)).norm()) for x in inputs()) for model in (tower, nearest)]
    assert errors[0] < 0.7 * errors[1]


@torch.no_grad()
def test_what_has_no_form_stays() -> None:
    tower, found = rounded_tower({name: form for name, form in FORMS.items() if not name.startswith("layers.1.")})
    assert not any(name.startswith("layers.1.") for name in found)
    assert torch.equal(tower.layers[1].gate.weight, Tower().layers[1].gate.weight)
    assert not torch.equal(tower.layers[2].gate.weight, Tower().layers[2].gate.weight)


@torch.no_grad()
def test_what_a_head_is_tied_to_keeps_its_weight() -> None:
    table = nn.Embedding(WIDTH, WIDTH)
    head = nn.Linear(WIDTH, WIDTH, bias=False)
    head.weight = table.weight
    before = table.weight.clone()
    found = round_to_nearest({"lm_head": head}, {"lm_head": FORM})
    assert torch.equal(table.weight, before)
    assert torch.equal(head.weight, found["lm_head"].dequantized())
