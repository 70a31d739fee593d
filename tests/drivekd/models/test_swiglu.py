"""Recomputing SwiGLU's products: the same numbers bit for bit, through several backward passes over one graph, in less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_run import TinyRun
from torch import Tensor, nn

from drivekd.models import language_model, load_model
from drivekd.models.swiglu import recompute_products

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def layers(kind_run: TinyRun) -> nn.ModuleList:
    decoder: Any = language_model(load_model(kind_run.student))
    return decoder.layers


def gradients(layers: nn.ModuleList, hidden: Tensor) -> list[Tensor | None]:
    """Of two losses on one retained graph, with respect to every weight and to the input."""
    found: list[Tensor | None] = []
    output = hidden
    middle = []
    for layer in layers:
        output = output + layer.mlp(output)
        middle.append(output)
    wanted = [hidden, *(weight for layer in layers for weight in layer.mlp.parameters())]
    for loss, retain in ((middle[0].square().sum(), True), (output.sin().sum(), False)):
        found += torch.autograd.grad(loss, wanted, retain_graph=retain, allow_unused=True)
    return found


def saved_bytes(run: Callable[[], object]) -> int:
    """What autograd keeps of a forward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_outputs_and_gradients_are_bit_equal(layers: nn.ModuleList) -> None:
    lean = copy.deepcopy(layers)
    recompute_products(lean)
    width = layers[0].mlp.gate_proj.in_features
    hidden = torch.randn(2, 7, width, generator=torch.Generator().manual_seed(0))
    expected = gradients(layers, hidden.clone().requires_grad_())
    found = gradients(lean, hidden.clone().requires_grad_())
    assert len(found) == len(expected) > 4
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or torch.equal(ours, theirs)


def test_the_products_are_not_kept(layers: nn.ModuleList) -> None:
    mlp: Any = layers[0].mlp
    lean: Any = copy.deepcopy(layers)
    recompute_products(lean)
    hidden = torch.randn(4, 64, mlp.gate_proj.in_features)
    one = 4 * 64 * mlp.gate_proj.out_features * 4  # bytes of one [B, S, F]
    assert saved_bytes(lambda: mlp(hidden)) - saved_bytes(lambda: lean[0].mlp(hidden)) >= 2 * one
