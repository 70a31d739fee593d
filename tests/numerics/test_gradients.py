"""Rows of raw gradients, their Gram matrix, and the update: each equal to the slow obvious version."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from drivekd.distill import gradients
from drivekd.distill.gradients import GradientRows


class Net(nn.Module):
    """Three parameters, of which `unused` is reached by the second loss alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 4)
        self.second = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.randn(2, 3))

    def losses(self, x: Tensor) -> list[Tensor]:
        hidden = self.first(x).tanh()
        return [hidden.square().mean(), (self.second(hidden) * self.unused.sum(0)).sum(), hidden.sum()]


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def filled(net: Net, *inputs: Tensor) -> GradientRows:
    """One row for each loss, added up over the inputs as over micro-batches."""
    rows = GradientRows(list(net.parameters()), 3)
    for x in inputs:
        losses = net.losses(x)
        for row, loss in enumerate(losses):
            rows.add(row, loss, retain_graph=row < 2)
    return rows


def separate(net: Net, row: int, x: Tensor) -> Tensor:
    """Gradient of one loss by itself, flat, through .backward()."""
    net.zero_grad()
    net.losses(x)[row].backward()
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in net.parameters()])


@pytest.mark.parametrize("row", range(3))
def test_each_row_is_the_gradient_of_its_loss(net: Net, x: Tensor, row: int) -> None:
    rows = filled(net, x)
    one = torch.zeros(3)
    one[row] = 1.0
    rows.write_update(one)
    found = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(found, separate(net, row, x), rtol=1e-6, atol=1e-7)  # fp32, same operations


def test_micro_batches_add_up(net: Net, x: Tensor) -> None:
    rows = filled(net, x[:2], x[2:])
    rows.write_update(torch.tensor([0.0, 1.0, 0.0]))
    found = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(found, separate(net, 1, x[:2]) + separate(net, 1, x[2:]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_gram_is_all_dot_products_however_it_is_cut(net: Net, x: Tensor, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(gradients, "GRAM_CHUNK", chunk)
    explicit = torch.stack([separate(net, row, x) for row in range(3)]).double()
    found = filled(net, x).gram()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, explicit @ explicit.T, rtol=1e-6, atol=1e-9)  # the rows are fp32
    assert torch.equal(found, found.T)


def test_gram_sums_in_float64() -> None:
    """fp32 sums of 1e8 ones and one 1e-4 lose the small one; the products here are exact."""
    parameter = nn.Parameter(torch.zeros(4))
    rows = GradientRows([parameter], 1)
    rows.add(0, (parameter * torch.tensor([1e4, 1e4, 1e4, 1e-2])).sum(), retain_graph=False)
    exact = 3 * 1e8 + float(torch.tensor(1e-2).double() ** 2)
    assert float(rows.gram()[0, 0]) == pytest.approx(exact, rel=1e-15)


def test_the_update_is_the_weighted_sum(net: Net, x: Tensor) -> None:
    rows = filled(net, x)
    coefficients = torch.tensor([1.5, -2.0, 0.25], dtype=torch.float64)
    explicit = torch.stack([separate(net, row, x) for row in range(3)])
    rows.write_update(coefficients)
    found = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(found, coefficients.float() @ explicit, rtol=1e-5, atol=1e-6)  # fp32, three terms
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())


def test_zero_forgets(net: Net, x: Tensor) -> None:
    rows = filled(net, x)
    rows.zero()
    assert float(rows.gram().abs().sum()) == 0.0


def test_adding_does_not_touch_grad(net: Net, x: Tensor) -> None:
    filled(net, x)
    assert all(p.grad is None for p in net.parameters())


def test_rows_stay_fp32_under_bf16_losses(net: Net) -> None:
    parameter = nn.Parameter(torch.ones(3))
    rows = GradientRows([parameter], 1)
    rows.add(0, (parameter.bfloat16() * 3).sum().float(), retain_graph=False)
    rows.write_update(torch.ones(1))
    assert parameter.grad is not None
    assert parameter.grad.dtype == torch.float32
