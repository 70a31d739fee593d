"""Head-mean attention against the obvious way, all heads at once: values, gradients, masks, memory.

B = 2 samples, H = 4 query heads, K = 2 key heads, S = 7 positions, D = 6 wide, R chosen rows, V chosen columns
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from drivekd.models import attention
from drivekd.models.attention import attend_with_mean, mean_map, mean_rows

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

B, H, K, S, D = 2, 4, 2, 7, 6
SCALING = 1.3
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}  # of values of about 1: some ten roundings
MASKS = ("causal", "packed", "padded", "one for all")
Inputs: TypeAlias = tuple[Tensor, Tensor, Tensor]


def inputs(dtype: torch.dtype = torch.float64, key_heads: int = K, length: int = S, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, length, D), (B, key_heads, length, D), (B, key_heads, length, D))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def mask_of(kind: str) -> Tensor | None:
    """packed: two questions behind a prefix, other cuts in each sample. padded: on the right, as the collator does it."""
    if kind == "causal":
        return None
    if kind == "one for all":
        return torch.ones(S, S, dtype=torch.bool).tril()[None, None]
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 2, 2, 3, 3]])
    if kind == "padded":
        segments = torch.tensor([[0, 0, 0, 0, 0, -1, -1], [0] * 7])
    same = segments[:, :, None] == segments[:, None]
    return (same | (segments[:, None] == 0)).tril()[:, None]


def obvious(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ) of all heads at once: output [B, H, S, D] and mean map [B, S, S]."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * scaling  # [B, H, S, S]
    visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if mask is None else mask
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return weights @ value, weights.mean(1)


def rows_and_columns() -> tuple[Tensor, Tensor]:
    """Rows out of order, one twice (padding repeats positions); columns with the row's own future among them."""
    return torch.tensor([[6, 2, 2, 0], [1, 5, 3, 6]]), torch.tensor([[0, 1, 5], [2, 2, 4]])


def obvious_rows(query: Tensor, key: Tensor, mask: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    _, mean = obvious(query, key, key, mask, SCALING)
    return torch.stack([mean[b][rows[b]][:, columns[b]] for b in range(len(rows))])


def close(found: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=factor * TOLERANCE[found.dtype])


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2, 3, 7, 512])
def row_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(attention, "ROW_BLOCK", request.param)
    return int(request.param)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_values_equal_all_heads_at_once(row_block: int, kind: str, dtype: torch.dtype, key_heads: int) -> None:
    query, key, value = inputs(dtype, key_heads)
    mask = mask_of(kind)
    expected, expected_mean = obvious(query, key, value, mask, SCALING)
    output, mean = attend_with_mean(query, key, value, mask, SCALING)
    close(output, expected, 10)  # values reach 3
    close(mean, expected_mean)
    close(mean_map(query, key, mask, SCALING), expected_mean)
    rows, columns = rows_and_columns()
    close(mean_rows(query, key, mask, SCALING, rows, columns), obvious_rows(query, key, mask, rows, columns))


@pytest.mark.parametrize("kind", MASKS)
def test_rows_are_the_whole_maps_rows(kind: str) -> None:
    """Each row sums to 1, and what it may not see is exactly 0."""
    query, key, value = inputs(torch.float32)
    mask = mask_of(kind)
    every = torch.arange(S).expand(B, -1)
    mean = mean_rows(query, key, mask, SCALING, every, every)
    close(mean, attend_with_mean(query, key, value, mask, SCALING)[1])
    close(mean.sum(-1), torch.ones(B, S))
    visible = torch.ones(S, S, dtype=torch.bool).tril() if mask is None else mask[:, 0]
    assert not bool(mean[~visible.expand(B, -1, -1)].any())


def test_a_row_that_sees_nothing_disturbs_no_other() -> None:
    """Padding in front: NaN in one row would be NaN in every row one layer later."""
    leaves = inputs()
    mask = torch.ones(S, S, dtype=torch.bool).tril().expand(B, 1, -1, -1).clone()
    mask[0, :, :, :2] = False  # two padded places
    rows = torch.tensor([[0, 3], [0, 3]])
    output, mean = attend_with_mean(*leaves, mask, SCALING)
    some = mean_rows(leaves[0], leaves[1], mask, SCALING, rows, rows)
    for found in (output, mean, some, mean_map(leaves[0], leaves[1], mask, SCALING)):
        assert bool(found.isfinite().all())
    expected, _ = obvious(*(leaf[:1, :, 2:] for leaf in leaves), None, SCALING)
    close(output[:1, :, 2:], expected, 10)
    (output[:, :, 2:].sum() + mean[:, 2:].square().sum() + some[:, 1:].square().sum()).backward()
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves)
    assert not bool(leaves[1].grad[0, :, :2].any())


def test_no_columns_are_no_error() -> None:
    query, key, _ = inputs()
    found = mean_rows(query, key, None, SCALING, torch.zeros(B, 3, dtype=torch.long), torch.zeros(B, 0, dtype=torch.long))
    found.sum().backward()
    assert found.shape == (B, 3, 0)
    assert not bool(query.grad is None or query.grad.any())


@pytest.mark.parametrize("with_gradients", [True, False])
def test_half_precision_maps_are_computed_in_fp32(with_gradients: bool) -> None:
    """Also under autocast, which would compute the scores in bf16 again."""
    query, key, value = inputs(torch.bfloat16)
    wide = [x.float() for x in (query, key, value)]
    expected, expected_mean = obvious(*wide, None, SCALING)
    rows, columns = rows_and_columns()
    with torch.set_grad_enabled(with_gradients), torch.autocast("cpu", torch.bfloat16):
        output, mean = attend_with_mean(query, key, value, None, SCALING)
        chosen = mean_rows(query, key, None, SCALING, rows, columns)
        alone = mean_map(query, key, None, SCALING)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=2**-7, atol=1e-2)  # 8 bits, also of SDPA's weights; values reach 3
    for found in (mean, alone):
        close(found, expected_mean)
    close(chosen, obvious_rows(wide[0], wide[1], None, rows, columns))


# --- gradients ------------------------------------------------------------------------------------------------------


def weights_like(x: Tensor, seed: int) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x.dtype)


def score(output: Tensor, mean: Tensor, through: str) -> Tensor:
    """Any scalar that reads the output, the map, or both."""
    total = output.new_zeros(())
    if through != "map":
        total = total + (output * weights_like(output, 5)).sum()
    if through != "output":
        total = total + (mean * weights_like(mean, 6)).square().sum()
    return total


def gradients(loss: Tensor, leaves: Inputs, **options: Any) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, allow_unused=True, **options)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("through", ["output", "map", "both"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_equal_all_heads_at_once(row_block: int, kind: str, through: str, dtype: torch.dtype) -> None:
    leaves = inputs(dtype)
    mask = mask_of(kind)
    found = gradients(score(*attend_with_mean(*leaves, mask, SCALING), through), leaves)
    expected = gradients(score(*obvious(*leaves, mask, SCALING), through), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, 100)  # gradients reach 20, and sum over heads and rows


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_of_chosen_rows(kind: str, dtype: torch.dtype) -> None:
    """Rows and columns that are named twice count twice."""
    leaves = inputs(dtype)
    rows, columns = rows_and_columns()
    mask = mask_of(kind)
    ours = mean_rows(leaves[0], leaves[1], mask, SCALING, rows, columns)
    theirs = obvious_rows(leaves[0], leaves[1], mask, rows, columns)
    found, expected = (gradients((x * weights_like(x, 6)).square().sum(), leaves) for x in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        close(one, other, 10)


@pytest.mark.parametrize("kind", MASKS)
def test_gradcheck(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROW_BLOCK", 3)
    leaves, mask = inputs(), mask_of(kind)
    rows, columns = rows_and_columns()
    assert torch.autograd.gradcheck(lambda q, k, v: attend_with_mean(q, k, v, mask, SCALING), leaves, fast_mode=True)
    assert torch.autograd.gradcheck(lambda q, k: mean_rows(q, k, mask, SCALING, rows, columns), leaves[:2], fast_mode=True)


def test_two_backward_passes_through_one_graph() -> None:
    """Every signal's gradient is taken by itself, over the graph that all share."""
    leaves = inputs()
    output, mean = attend_with_mean(*leaves, None, SCALING)
    first = gradients(score(output, mean, "map"), leaves, retain_graph=True)
    second = gradients(score(output, mean, "output"), leaves)
    both = gradients(score(*attend_with_mean(*leaves, None, SCALING), "both"), leaves)
    for one, other, together in zip(first, second, both, strict=True):
        close(one + other, together, 100)


def test_half_precision_gradients_of_a_map_are_rounded_once() -> None:
    leaves = inputs(torch.bfloat16)
    wide: Any = [leaf.detach().float().requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        _, mean = attend_with_mean(*leaves, None, SCALING)
    found = gradients((mean * weights_like(mean, 6)).square().sum(), leaves)
    _, obvious_mean = obvious(*wide, None, SCALING)
    expected = gradients((obvious_mean * weights_like(mean, 6)).square().sum(), wide)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-8, atol=1e-6)  # bf16 has 8 bits


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    leaves = inputs()
    _, mean = attend_with_mean(*leaves, None, SCALING)
    (slope,) = torch.autograd.grad(mean.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


# --- memory ---------------------------------------------------------------------------------------------------------


def saved_bytes(compute: Callable[[], object]) -> int:
    """Bytes of the distinct storages that a forward pass keeps for its backward pass."""
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # a freed address must not be counted as the same storage

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = compute()
    del result
    return sum(storages.values())


def test_a_layer_keeps_no_map_per_head() -> None:
    """S = 512, H = 4: eager attention keeps 8 MB of weights, two samples' q, k and v are 0.2 MB."""
    length = 512
    leaves = inputs(torch.float32, length=length)
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(B, 1, -1, -1).clone()
    one_map, one_head = 4 * B * length * length, 4 * B * length * D
    eager = saved_bytes(lambda: obvious(*leaves, None, SCALING))
    assert eager >= H * one_map
    assert saved_bytes(lambda: mean_map(leaves[0], leaves[1], None, SCALING)) == (H + K) * one_head
    # SDPA keeps q, k and v with keys and values of every head, and its output; a mask in fp32, one for all heads
    everything = (H + K + 3 * H + 2) * one_head
    assert saved_bytes(lambda: attend_with_mean(*leaves, None, SCALING)) <= everything
    assert saved_bytes(lambda: attend_with_mean(*leaves, mask, SCALING)) <= everything + one_map


def test_chosen_rows_keep_no_map_per_head() -> None:
    """q and k, which the layer keeps anyway; q's chosen rows; what a row may see, one byte a pair for all heads; positions."""
    length, num_rows = 512, 384
    leaves = inputs(torch.float32, length=length)
    rows, columns = torch.arange(128, length).expand(B, -1), torch.arange(128).expand(B, -1)
    found = saved_bytes(lambda: mean_rows(leaves[0], leaves[1], None, SCALING, rows, columns))
    assert found <= 4 * B * D * (H * length + K * length + H * num_rows) + B * num_rows * length + 4096
