"""Rows of raw gradients, their Gram matrix, and the update: each equal to the slow obvious version, on one process and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from two_processes import run_two

from drivekd.distill.training import gradients
from drivekd.distill.training.gradients import GradientRows

pytestmark = pytest.mark.numerics


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


def test_a_stale_grad_is_not_part_of_a_row(net: Net, x: Tensor) -> None:
    """The last step's update is still in .grad, where backward() would add to it."""
    expected = filled(net, x).gram()
    filled(net, x).write_update(torch.ones(3))
    assert torch.equal(filled(net, x).gram(), expected)


def test_parameters_that_share_a_gradient_do_not_share_a_row() -> None:
    """Addition hands one tensor to both of its inputs."""
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    rows = GradientRows([a, b], 1)
    for _ in range(2):
        rows.add(0, (a + b).square().sum(), retain_graph=False)
    rows.write_update(torch.ones(1))
    assert a.grad is not None and b.grad is not None
    assert a.grad.tolist() == b.grad.tolist() == [8.0] * 3


def test_a_row_costs_what_its_loss_reaches(net: Net, x: Tensor) -> None:
    rows = GradientRows(list(net.parameters()), 3)
    assert rows.num_bytes == 0
    rows.add(0, net.losses(x)[0], retain_graph=False)
    first = sum(p.numel() for p in net.first.parameters())
    assert rows.num_bytes == 4 * first
    rows.add(0, net.losses(x)[0], retain_graph=False)  # accumulated in place
    assert rows.num_bytes == 4 * first
    rows.zero()
    assert rows.num_bytes == 0


def test_gradients_of_another_backward_are_collected(net: Net, x: Tensor) -> None:
    rows = GradientRows(list(net.parameters()), 3)
    for row in range(3):
        net.zero_grad()
        net.losses(x)[row].backward()
        rows.collect(row)
        assert all(p.grad is None for p in net.parameters())
    assert torch.equal(rows.gram(), filled(net, x).gram())


def test_micro_batches_projected_by_themselves_add_up(net: Net, x: Tensor) -> None:
    coefficients = [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 3.0, 1.0])]
    rows = GradientRows(list(net.parameters()), 3)
    for part, weights in zip((x[:2], x[2:]), coefficients, strict=True):
        for row, loss in enumerate(net.losses(part)):
            rows.add(row, loss, retain_graph=row < 2)
        rows.accumulate(weights)
        assert float(rows.gram().abs().sum()) == 0.0
    rows.write_update()
    found = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    parts = ((x[:2], coefficients[0]), (x[2:], coefficients[1]))
    expected = sum(weights @ torch.stack([separate(net, row, part) for row in range(3)]) for part, weights in parts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # fp32, six terms of up to 10


def test_what_no_loss_reaches_gets_a_gradient_of_zero(net: Net, x: Tensor) -> None:
    """None would make AdamW skip it: its moments would rest in steps without the capability, and no state would be saved."""
    rows = GradientRows(list(net.parameters()), 1)
    rows.add(0, net.losses(x)[0], retain_graph=False)
    rows.write_update(torch.ones(1))
    assert net.unused.grad is not None
    assert torch.equal(net.unused.grad, torch.zeros_like(net.unused))


def test_no_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        GradientRows([], 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_offloaded_rows_are_the_same_rows(net: Net, x: Tensor) -> None:
    net, x = net.cuda(), x.cuda()
    found = []
    for offload in (False, True):
        rows = GradientRows(list(net.parameters()), 3, offload=offload)
        for part in (x[:2], x[2:]):
            for row, loss in enumerate(net.losses(part)):
                rows.add(row, loss, retain_graph=row < 2)
        held = [tensor for row in rows._rows for tensor in row.values()]
        assert all(tensor.is_cuda is not offload and tensor.is_pinned() is offload for tensor in held)
        gram = rows.gram()
        rows.write_update(torch.tensor([1.0, 0.5, -2.0]))
        found.append((gram, torch.cat([p.grad.flatten().cpu() for p in net.parameters() if p.grad is not None])))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=0.0)  # the same fp32 rows
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-6, atol=1e-6)  # sums of two on CPU and GPU


# --- two processes --------------------------------------------------------------------------------------------------

WORDS, WIDTH, LENGTH, SAMPLES = 11, 6, 5, 8


class Decoder(nn.Module):
    """Embedding tied to the head, three attention blocks, and a parameter of one scalar, of which the second rank's shard is
    empty. `maps` are the blocks' attention maps: losses leave the model half-way, as the signals' do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden, maps = self.embedding(ids), []
        for block in self.blocks:
            hidden, attention = block(hidden)
            maps.append(attention)
        return self.scale * (hidden @ self.embedding.weight.T), maps


class Block(nn.Module):
    """Norm, one attention head, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(hidden)
        attention = (self.q(normed) @ self.k(normed).transpose(1, 2)).softmax(-1)  # [B, S, S]
        return hidden + attention @ self.v(normed), attention


def row_losses(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """CE, and what stands for perception (first map) and planning (second map); sums over the whole step's samples."""
    logits, maps = model(ids)
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    return [ce / SAMPLES, *((maps[layer] - torch.eye(LENGTH)).square().sum() / SAMPLES for layer in (0, 1))]


def step_ids() -> Tensor:
    return torch.randint(0, WORDS, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(2))


COEFFICIENTS = torch.tensor([1.5, -2.0, 0.25], dtype=torch.float64)


def gram_and_update(model: nn.Module, ids: Tensor, skip_row: int | None = None, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two micro-batches; skip_row: a row for which this rank has no samples."""
    parameters = list(model.parameters())
    rows = GradientRows(parameters, 3)
    for part in ids.chunk(2):
        losses = row_losses(model, part)
        for row, loss in enumerate(losses):
            if row != skip_row:
                rows.add(row, loss * scale, retain_graph=True)
    rows.all_reduce()
    gram = rows.gram()
    rows.write_update(COEFFICIENTS)
    grads = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
    return gram, torch.cat([grad.flatten() for grad in grads if grad is not None])


def replicas(rank: int) -> tuple[Tensor, Tensor]:
    """Rank 0 has no planning samples, rank 1 no perception samples."""
    return gram_and_update(Decoder(), step_ids().chunk(2)[rank], skip_row=(2, 1)[rank])


def shards(rank: int) -> tuple[Tensor, Tensor]:
    """FSDP2 means over ranks where losses are sums over them: hence the scale. A map must be an output of its block, and be
    so before the block's hidden state is: else the backward pass from it finds the block's weights freed."""
    model = Decoder()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return gram_and_update(model, step_ids().chunk(2)[rank], scale=float(dist.get_world_size()))


def one_process() -> dict[str, tuple[Tensor, Tensor]]:
    ids = step_ids()
    return {"replicas": split_by_row(ids), "shards": gram_and_update(Decoder(), ids)}


def split_by_row(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Perception over the first half of the samples, planning over the second, as `replicas` has them."""
    model = Decoder()
    rows = GradientRows(list(model.parameters()), 3)
    for row, samples in enumerate((ids, *ids.chunk(2))):
        rows.add(row, row_losses(model, samples)[row], retain_graph=False)
    gram = rows.gram()
    rows.write_update(COEFFICIENTS)
    return gram, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save({"replicas": replicas(rank), "shards": shards(rank)}, folder / f"{rank}.pt")
    dist.barrier()
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """What each rank found; one start of two processes for all tests, since it takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two(_rank, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("placement", ["replicas", "shards"])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_equal_one(
    two_processes: list[dict[str, tuple[Tensor, Tensor]]], one_thread: None, placement: str, rank: int
) -> None:
    gram, update = two_processes[rank][placement]
    expected_gram, expected_update = one_process()[placement]
    # fp32 gradients summed in another order: 1e-6 of the largest, squared sums likewise
    torch.testing.assert_close(gram, expected_gram, rtol=1e-5, atol=1e-6 * float(expected_gram.max()))
    torch.testing.assert_close(update, expected_update, rtol=1e-5, atol=1e-6 * float(expected_update.abs().max()))


@pytest.mark.parametrize("placement", ["replicas", "shards"])
def test_all_ranks_hold_the_same_gram_matrix(two_processes: list[dict[str, tuple[Tensor, Tensor]]], placement: str) -> None:
    """To the bit: coefficients are computed on every rank by itself."""
    assert torch.equal(two_processes[0][placement][0], two_processes[1][placement][0])
