"""The losses: by hand, against plain loops, by gradcheck; padding enters no mask and no denominator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drivekd.distill.losses import (
    cross_entropy_per_sample,
    full_map_mse,
    full_map_mse_per_sample,
    logits_kl_per_sample,
    text_to_vision_mse,
    text_to_vision_mse_per_sample,
)

pytestmark = pytest.mark.numerics


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rand_mask(*shape: int, seed: int = 0) -> Tensor:
    return rand(*shape, seed=seed + 100) < 0.4


# --- by hand --------------------------------------------------------------------------------------------------------


def test_text_to_vision_by_hand() -> None:
    student = torch.tensor([[[0.5, 0.2], [0.1, 0.9]], [[1.0, 1.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[0.1, 0.2], [0.4, 0.3]], [[0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[[True, False], [True, False]], [[False, False], [False, True]]])
    # sample 0: (0.4² + 0.3²) / 2 = 0.125; sample 1: 1 / 1
    assert text_to_vision_mse_per_sample(student, teacher, mask).tolist() == pytest.approx([0.125, 1.0])
    assert float(text_to_vision_mse(student, teacher, mask)) == pytest.approx(0.5625)


def test_full_map_by_hand() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.1, 0.9]]])
    assert float(full_map_mse(student, teacher)) == pytest.approx((0.4**2 + 0.4**2) / 4)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, torch.log(torch.tensor(3.0))], [0.0, 0.0]])
    targets, sample = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0])
    log = torch.log(torch.tensor([2.0, 4 / 3])).tolist()  # -ln 1/2, -ln 3/4
    expected = [(log[1] + log[0]) / 2, 0.0, log[0]]
    assert cross_entropy_per_sample(logits, targets, sample, 3).tolist() == pytest.approx(expected)


def test_kl_by_hand() -> None:
    """Teacher (1/2, 1/2), student (1/4, 3/4): KL(teacher ‖ student) = ln(2/√3); the other way round it is another number."""
    student, teacher = torch.tensor([[1.0, 3.0], [5.0, 5.0], [1.0, 3.0]]).log(), torch.zeros(3, 2)
    per_token = torch.log(torch.tensor(2 / 3**0.5)).item()
    found = logits_kl_per_sample(student, teacher, torch.tensor([2, 2, 0]), 3)
    assert found.tolist() == pytest.approx([per_token, 0.0, per_token / 2], abs=1e-7)


# --- denominators ---------------------------------------------------------------------------------------------------


def test_a_sample_without_pairs_costs_nothing_and_divides_by_one() -> None:
    empty = torch.zeros(1, 3, 3, dtype=torch.bool)
    student = rand(1, 3, 3).requires_grad_()
    loss = text_to_vision_mse(student, rand(1, 3, 3, seed=1), empty)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert student.grad is not None
    assert float(student.grad.abs().sum()) == 0.0


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_invisible_pairs_stay_in_the_denominator(share: float) -> None:
    """A pair that causality hides is zero in both maps: it adds nothing above and one below."""
    student, teacher = rand(1, 4, 4), rand(1, 4, 4, seed=1)
    visible = torch.ones(4, 4, dtype=torch.float64).tril()
    everything = torch.ones(1, 4, 4, dtype=torch.bool)
    found = text_to_vision_mse(share * student * visible, share * teacher * visible, everything)
    expected = (share * (student - teacher) * visible).square().sum() / 16  # not / 10, the visible ones
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_the_zero_upper_triangle_is_in_the_full_maps_mean() -> None:
    student, teacher = rand(2, 5, 5).tril(), rand(2, 5, 5, seed=1).tril()
    assert float(full_map_mse(student, teacher)) == pytest.approx(float((student - teacher).square().sum() / (2 * 25)), rel=1e-12)


@pytest.mark.parametrize("padding", [1, 4])
def test_padding_changes_nothing(padding: int) -> None:
    """Whatever a padded position attends to, and however much padding the longest sample asks for."""
    student, teacher = rand(2, 5, 5), rand(2, 5, 5, seed=1)
    pairs, tokens = rand_mask(2, 5, 5), torch.ones(2, 5, dtype=torch.bool)
    grown = (0, padding, 0, padding)
    wide_student, wide_teacher = F.pad(student, grown, value=0.7), F.pad(teacher, grown, value=0.2)
    wide_tokens = F.pad(tokens, (0, padding), value=False)
    assert text_to_vision_mse_per_sample(wide_student, wide_teacher, F.pad(pairs, grown, value=False)).tolist() == pytest.approx(
        text_to_vision_mse_per_sample(student, teacher, pairs).tolist(), rel=1e-12
    )
    assert full_map_mse_per_sample(wide_student, wide_teacher, wide_tokens).tolist() == pytest.approx(
        full_map_mse_per_sample(student, teacher, None).tolist(), rel=1e-12
    )


def test_a_long_sample_does_not_outweigh_a_short_one() -> None:
    """Mean over a sample first, then over samples."""
    student, teacher = rand(2, 6, 6), rand(2, 6, 6, seed=1)
    tokens = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    alone = [
        float(full_map_mse(student[:1], teacher[:1])),
        float(full_map_mse(student[1:, :2, :2], teacher[1:, :2, :2])),
    ]
    assert full_map_mse_per_sample(student, teacher, tokens).tolist() == pytest.approx(alone, rel=1e-12)
    assert float(full_map_mse(student, teacher, tokens)) == pytest.approx(sum(alone) / 2, rel=1e-12)


# --- against plain loops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_text_to_vision_equals_a_loop(seed: int) -> None:
    student, teacher, mask = rand(3, 4, 6, seed=seed), rand(3, 4, 6, seed=seed + 50), rand_mask(3, 4, 6, seed=seed)
    expected = []
    for b in range(3):
        terms = [float((student[b, i, j] - teacher[b, i, j]) ** 2) for i in range(4) for j in range(6) if mask[b, i, j]]
        expected.append(sum(terms) / max(1, len(terms)))
    assert text_to_vision_mse_per_sample(student, teacher, mask).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_cross_entropy_equals_torchs_mean_of_each_sample(seed: int) -> None:
    logits, lengths = rand(7, 11, seed=seed) * 9, [3, 0, 4]
    targets = (rand(7, seed=seed + 1) * 11).long()
    sample = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    expected = [float(F.cross_entropy(logits[sample == b], targets[sample == b])) if lengths[b] else 0.0 for b in range(3)]
    # 1e-5: the loss is taken in fp32, whatever comes in
    assert cross_entropy_per_sample(logits, targets, sample, 3).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_kl_equals_torchs_mean_of_each_sample(seed: int) -> None:
    student, teacher = rand(7, 11, seed=seed) * 9, rand(7, 11, seed=seed + 50) * 9
    lengths = [3, 0, 4]
    sample = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    expected = []
    for b in range(3):
        ours, theirs = student[sample == b].log_softmax(-1), teacher[sample == b].softmax(-1)
        expected.append(float(F.kl_div(ours, theirs, reduction="batchmean")) if lengths[b] else 0.0)
    assert logits_kl_per_sample(student, teacher, sample, 3).tolist() == pytest.approx(expected, rel=1e-12)


# --- properties -----------------------------------------------------------------------------------------------------

SAMPLE = torch.tensor([0, 0, 1, 1, 1, 3, 3, 3])  # of 8 supervised tokens; sample 2 has none
SQUARED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "text_to_vision": lambda s, t: text_to_vision_mse(s, t, rand_mask(2, 4, 4)),
    "full_map": lambda s, t: full_map_mse(s, t),
    "full_map, masked": lambda s, t: full_map_mse(s, t, torch.tensor([[True] * 4, [True, True, False, False]])),
}
LOSSES = SQUARED | {
    "kl": lambda s, t: logits_kl_per_sample(s.reshape(8, 4), t.reshape(8, 4), SAMPLE, 4).mean(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_map_equal_to_the_teachers_costs_nothing(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert float(loss(rand(2, 4, 4), rand(2, 4, 4))) == pytest.approx(0.0, abs=1e-15)  # 1 - cos rounds


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_any_other_map_costs_something(loss: Callable[[Tensor, Tensor], Tensor], seed: int) -> None:
    assert float(loss(rand(2, 4, 4, seed=seed), rand(2, 4, 4, seed=seed + 50))) > 1e-4


@pytest.mark.parametrize("loss", SQUARED.values(), ids=SQUARED)
def test_twice_the_difference_costs_four_times(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = rand(2, 4, 4), rand(2, 4, 4, seed=1)
    far = teacher + 2 * (student - teacher)
    assert float(loss(far, teacher)) == pytest.approx(4 * float(loss(student, teacher)), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_gradient_is_right(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = rand(2, 4, 4).requires_grad_(), rand(2, 4, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


def test_the_gradient_of_cross_entropy_is_right() -> None:
    targets = torch.tensor([0, 3, 1, 2, 2, 0, 1, 3])
    assert torch.autograd.gradcheck(lambda x: cross_entropy_per_sample(x, targets, SAMPLE, 4), (rand(8, 4) * 5).requires_grad_())


def test_logits_over_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="same words"):
        logits_kl_per_sample(rand(3, 8), rand(3, 9), torch.zeros(3, dtype=torch.long), 1)


def test_bf16_maps_and_logits_are_compared_in_fp32() -> None:
    student, teacher = (rand(2, 4, 4, seed=seed).bfloat16() for seed in (0, 1))
    for name, loss in LOSSES.items():
        if name not in SQUARED:  # those subtract first, in what the maps come in: fp32
            found = loss(student, teacher)
            assert found.dtype == torch.float32
            assert float(found) == pytest.approx(float(loss(student.double(), teacher.double())), rel=1e-4)  # bf16 gives 1e-2


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits = (rand(5, 8).float() * 20).bfloat16()
    targets, sample = torch.arange(5), torch.zeros(5, dtype=torch.long)
    found = cross_entropy_per_sample(logits, targets, sample, 1)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(F.cross_entropy(logits.double(), targets)), rel=1e-6)  # fp32; bf16 gives 1e-2
