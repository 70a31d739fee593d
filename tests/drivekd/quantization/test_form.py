"""The one rounding of weights: its bound, its scales, and the gradients through it."""

from __future__ import annotations

import pytest
import torch

from drivekd.quantization.form import SMALLEST_HALF, WeightForm, block_scales, fits_half, quantized, rounded, spread, stored
from drivekd.quantization.straight_through import CHUNK_VALUES, known, straight_through, trained_scales

FORMS = [WeightForm(bits, block) for bits in (4, 8) for block in (32, 128)]


def weights(outputs: int = 6, inputs: int = 300, seed: int = 0) -> torch.Tensor:
    """Rows of different sizes; the last block of a row is a part of one."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-1, 1, outputs)[:, None]
    return torch.randn(outputs, inputs, generator=generator) * sizes


@pytest.mark.parametrize("form", FORMS)
def test_no_weight_is_further_off_than_half_a_step(form: WeightForm) -> None:
    weight = weights()
    scales = block_scales(weight, form)
    error = (rounded(weight, scales, form) * spread(scales, form.block, 300) - weight).abs()
    assert (error <= spread(scales, form.block, 300) * (0.5 + 1e-5)).all()
    smaller = scales * 0.98
    beyond = (rounded(weight, smaller, form) * spread(smaller, form.block, 300) - weight).abs() / spread(smaller, form.block, 300)
    assert (beyond > 0.5 + 1e-5).any(), "a smaller scale would do: the bound is not tight"


@pytest.mark.parametrize("form", FORMS)
def test_every_value_is_used_and_none_beyond(form: WeightForm) -> None:
    values = quantized(weights(64, 1280), form).values
    assert (int(values.min()), int(values.max())) == (form.low, form.high)


def test_scales_are_numbers_of_float16_unless_the_whole_matrix_is_tiny() -> None:
    found = quantized(weights(), WeightForm(4, 32)).scales
    assert torch.equal(found, found.half().float())
    tiny = quantized(weights() * 1e-6, WeightForm(4, 32))
    assert not fits_half(tiny.scales)
    error = (tiny.dequantized() - weights() * 1e-6).norm() / (weights() * 1e-6).norm()
    assert error < 0.15, "tiny weights are rounded like others"
    assert float(stored(tiny.scales, half=True).min()) == SMALLEST_HALF, "a graph of float16 has no smaller scale"


def test_a_block_of_zeros_stays_zero() -> None:
    weight = weights()
    weight[:, :32] = 0
    found = quantized(weight, WeightForm(4, 32))
    assert (found.scales > 0).all()
    assert (found.dequantized()[:, :32] == 0).all()


def test_bits_of_a_weight_count_the_scales() -> None:
    assert WeightForm(4, 32).bits_per_weight(896) == 4.5
    assert WeightForm(4, 32).bits_per_weight(896, half_scales=False) == 5.0
    assert WeightForm(8, 128).bits_per_weight(128) == 8.125
    assert WeightForm(4, 32).bits_per_weight(33) == 4 + 32 / 33, "a part of a block has a scale, too"


@pytest.mark.parametrize("form", FORMS)
def test_training_computes_with_the_weights_that_are_exported(form: WeightForm) -> None:
    weight = weights()
    exported = quantized(weight, form)
    logs = exported.scales.log()
    assert torch.equal(trained_scales(logs), exported.scales), "logarithm and back, rounded to float16, are the same numbers"
    assert torch.equal(straight_through(weight, logs, form), exported.dequantized())


def test_the_gradient_of_a_scale_is_the_slope_between_the_steps() -> None:
    """Between two changes of the values the weights are linear in the scale: d(w')/d(log s) = s value, less the straight-through
    part w (which says that w' follows w / s · s)."""
    form = WeightForm(4, 32)
    weight = weights(2, 64).requires_grad_()
    logs = quantized(weight.detach(), form).scales.log().requires_grad_()
    upstream = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    (straight_through(weight, logs, form) * upstream).sum().backward()
    scales = trained_scales(logs.detach())
    values = rounded(weight.detach(), scales, form)
    expected = upstream * (values * spread(scales, 32, 64) - weight.detach())
    assert weight.grad is not None and torch.equal(weight.grad, upstream), "all within the range"
    torch.testing.assert_close(logs.grad, expected.reshape(2, 2, 32).sum(2))


def test_a_weight_beyond_the_range_moves_its_scale_alone() -> None:
    form = WeightForm(4, 32)
    weight = torch.full((1, 32), 0.1)
    weight[0, 0] = 10.0
    weight.requires_grad_()
    logs = torch.tensor([[0.25]]).log().requires_grad_()
    straight_through(weight, logs, form)[0, 0].backward()
    assert weight.grad is not None and float(weight.grad[0, 0]) == 0.0
    assert logs.grad is not None and float(logs.grad) == pytest.approx(form.high * 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_known_result_is_returned_and_gradients_stay(dtype: torch.dtype) -> None:
    form = WeightForm(4, 32)
    weight = (weights(64, 300) * 1.3).requires_grad_()
    logs = quantized(weights(64, 300), form).scales.log().requires_grad_()  # a third of the largest are beyond the range
    before = known(weight, logs, form, dtype)
    upstream = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = [straight_through(weight, logs, form).to(dtype), straight_through(weight, logs, form, before)]
    assert torch.equal(results[0], results[1])
    first, second = (torch.autograd.grad(result, (weight, logs), upstream) for result in results)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_rows_taken_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    form = WeightForm(4, 32)
    weight, logs = (weights(64, 300) * 1.3).requires_grad_(), quantized(weights(64, 300), form).scales.log().requires_grad_()
    upstream = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))

    def result() -> list[torch.Tensor]:
        rounded_weight = straight_through(weight, logs, form)
        return [rounded_weight.detach(), *torch.autograd.grad(rounded_weight, (weight, logs), upstream)]

    whole = result()
    beyond = (whole[1] == 0) & (upstream != 0)
    assert 0 < int(beyond.sum()) < 0.1 * weight.numel()
    ratio = weight.detach() / spread(trained_scales(logs.detach()), 32, 300)
    assert torch.equal(beyond, (ratio <= form.low - 1) | (ratio >= form.high + 1))
    monkeypatch.setitem(CHUNK_VALUES, "cpu", 1000)  # 3 rows
    assert all(torch.equal(few, one) for few, one in zip(result(), whole, strict=True))
