"""Rounding by data: what each step of it gains on inputs whose channels are related, as those of trained models are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drivekd.quantization.form import WeightForm, block_scales, quantized, rounded, spread, stored
from drivekd.quantization.gptq import InputStatistics, fitted_scales, gptq, quantized_by_data, searched_scales

INPUTS, OUTPUTS, TOKENS = 128, 48, 2048
FORM = WeightForm(4, 32)


def samples(shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """weight [N, K]; X' [T, K], with related channels of uneven size; X [T, K]: X' and `shift` times something else."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.eye(INPUTS) + 0.3 * torch.randn(INPUTS, INPUTS, generator=generator)
    sizes = torch.rand(INPUTS, generator=generator) * 2 + 0.1
    given = torch.randn(TOKENS, INPUTS, generator=generator) @ mixed * sizes
    exact = given + shift * torch.randn(TOKENS, INPUTS, generator=generator) @ mixed
    return torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.05, given, exact


def statistics(given: Tensor, exact: Tensor) -> InputStatistics:
    found = InputStatistics.none(INPUTS, shifted=True)
    for parts in zip(given.split(500), exact.split(500), strict=True):
        found.add(*parts)
    return found


def error(weight: Tensor, given: Tensor, exact: Tensor, restored: Tensor) -> float:
    expected = exact @ weight.T
    return float((given @ restored.T - expected).norm() / expected.norm())


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    _, given, exact = samples(0.2)
    found = statistics(given, exact)
    assert found.tokens == TOKENS and found.shift is not None
    torch.testing.assert_close(found.hessian, given.T @ given / TOKENS, rtol=1e-4, atol=1e-4)  # sums in another order
    torch.testing.assert_close(found.shift, (exact - given).T @ given / TOKENS, rtol=1e-3, atol=1e-4)


def test_each_step_loses_less_than_the_one_before() -> None:
    weight, given, exact = samples()
    hessian = statistics(given, exact).hessian
    nearest = quantized(weight, FORM)
    scales = stored(searched_scales(weight, FORM, hessian.diagonal()))
    searched = rounded(weight, scales, FORM) * spread(scales, 32, INPUTS)
    values = gptq(weight, scales, FORM, hessian)
    compensated = values * spread(scales, 32, INPUTS)
    refitted = values * spread(fitted_scales(weight, values, scales, FORM, hessian), 32, INPUTS)
    errors = [error(weight, given, exact, found) for found in (nearest.dequantized(), searched, compensated, refitted)]
    assert errors == sorted(errors, reverse=True), errors
    assert errors[2] < 0.75 * errors[0], "compensation is most of it"
    whole = quantized_by_data(weight, FORM, statistics(given, exact)).dequantized()
    assert error(weight, given, exact, whole) == pytest.approx(errors[3], rel=0.02)  # scales are rounded to float16


def test_inputs_that_were_shifted_by_layers_before_are_answered_as_the_float_ones() -> None:
    """Half of what the layers before lost can be foreseen from what they give."""
    generator = torch.Generator().manual_seed(1)
    weight, given, _ = samples()
    exact = given @ (torch.eye(INPUTS) + 0.02 * torch.randn(INPUTS, INPUTS, generator=generator))
    blind = InputStatistics(statistics(given, exact).hessian, None, TOKENS)
    plain, aware = (quantized_by_data(weight, FORM, found).dequantized() for found in (blind, statistics(given, exact)))
    assert error(weight, given, exact, aware) < 0.7 * error(weight, given, exact, plain)


def test_gptq_of_uncorrelated_inputs_is_rounding() -> None:
    weight, _, _ = samples()
    scales = block_scales(weight, FORM)
    assert torch.equal(gptq(weight, scales, FORM, torch.eye(INPUTS)), rounded(weight, scales, FORM))


def test_the_fit_is_the_least_squares_solution() -> None:
    """No scale of any block can be moved for the better."""
    weight, given, exact = samples()
    hessian = statistics(given, exact).hessian
    scales = block_scales(weight, FORM)
    values = rounded(weight, scales, FORM)
    fitted = fitted_scales(weight, values, scales, FORM, hessian)

    def losses(candidate: Tensor) -> Tensor:
        lost = values * spread(candidate, 32, INPUTS) - weight
        return torch.einsum("nk,kl,nl->n", lost, hessian, lost)

    for block in range(fitted.shape[1]):
        for share in (0.98, 1.02):
            moved = fitted.clone()
            moved[:, block] *= share
            assert (losses(moved) > losses(fitted) * (1 - 1e-4)).all()  # damping of 1e-3 moves it a little


@pytest.mark.parametrize("bits", [4, 8])
def test_silent_inputs_hinder_nothing(bits: int) -> None:
    form = WeightForm(bits, 32)
    weight, given, exact = samples()
    given, exact = given.clone(), exact.clone()
    given[:, :40] = exact[:, :40] = 0
    found = quantized_by_data(weight, form, statistics(given, exact)).dequantized()
    assert bool(torch.isfinite(found).all())
    assert error(weight, given, exact, found) < 0.1


def test_without_any_token_it_is_rounding() -> None:
    weight, _, _ = samples()
    nothing = InputStatistics.none(INPUTS, shifted=True)
    assert torch.equal(quantized_by_data(weight, FORM, nothing).values, quantized(weight, FORM).values)


def test_one_token_is_enough_to_be_solvable() -> None:
    weight, given, exact = samples()
    found = quantized_by_data(weight, FORM, statistics(given[:1], exact[:1])).dequantized()
    assert bool(torch.isfinite(found).all())


def test_the_number_of_threads_does_not_matter() -> None:
    weight, given, exact = samples()
    before, found = torch.get_num_threads(), []
    hessian = statistics(given, exact).hessian
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(gptq(weight, block_scales(weight, FORM), FORM, hessian))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert (found[0] != found[1]).float().mean() < 0.01, "matrix products round by threads; exports use four always"
