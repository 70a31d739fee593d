"""The statistics under `drivekd analyze`'s curves: right by hand on small values, and sums that hold no sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analyze_cases import mean_pairwise
from torch import Tensor

from drivekd.analyze.curves import CurveSums
from drivekd.analyze.statistics import PairwiseCosine, answer_bins, attention_vectors, label_margins, masked_mean
from drivekd.tiling import Tiling

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


# --- sums -----------------------------------------------------------------------------------------------------------


def test_sums_do_not_grow_with_samples() -> None:
    def held(num_samples: int) -> int:
        sums = CurveSums(3)
        for index in range(num_samples):
            sums.add_layers(torch.rand(1, 3), torch.rand(1, 3), torch.rand(1, 3, 8), torch.rand(1, 3, 256))
            sums.add_margins(torch.rand(2, 2), torch.tensor([0, index % 10]))
        return sum(value.numel() for part in (sums, sums._attention, sums._hidden) for value in tensors(part))

    assert held(1) == held(50)


def tensors(part: object) -> list[Tensor]:
    values = vars(part).values()
    assert not any(isinstance(value, list | dict) for value in values)  # nothing hides in a collection
    return [value for value in values if isinstance(value, Tensor)]


@pytest.mark.parametrize("seed", range(20))
def test_the_running_sum_gives_the_mean_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, layers, width = rng.integers(2, 30), rng.integers(1, 5), rng.integers(1, 40)
    vectors = rng.normal(rng.normal(), 1, (count, layers, width)) * rng.uniform(0.01, 100, (count, 1, 1))
    sums = PairwiseCosine()
    for part in np.array_split(vectors, rng.integers(1, count + 1)):
        sums.add(torch.from_numpy(part))
    expected = [mean_pairwise(list(vectors[:, layer])) for layer in range(layers)]
    assert sums.mean() == pytest.approx(expected, abs=1e-12)  # both float64


@pytest.mark.parametrize(
    ("vectors", "expected"), [([[1, 2], [2, 4], [5, 10]], 1), ([[1, 0], [0, 3]], 0), ([[1, 0], [-2, 0]], -1)]
)
def test_cosines_of_known_vectors(vectors: list[list[float]], expected: float) -> None:
    sums = PairwiseCosine()
    sums.add(torch.tensor(vectors)[:, None])
    assert sums.mean() == pytest.approx([expected], abs=1e-12)


def test_one_sample_has_no_pair() -> None:
    sums = PairwiseCosine()
    assert sums.mean() == ()
    sums.add(torch.rand(1, 4, 3))
    assert sums.mean() == ()


# --- what is measured -----------------------------------------------------------------------------------------------


def test_a_16_by_16_image_is_taken_as_it_is() -> None:
    rows = torch.rand(1, 3, 256)
    vector = attention_vectors(rows, torch.ones(1, 3, dtype=torch.bool), [1], (16, 16))
    torch.testing.assert_close(vector, rows.mean(1))


def test_images_are_averaged_and_padding_counts_for_nothing() -> None:
    """A sample with one image beside one with two, and a padded row: what lies in the padding must not show."""
    images = torch.rand(2, 4)
    rows = torch.full((2, 3, 8), 7.0)
    rows[0, :2, :4] = images[0]
    rows[1, :2] = images.flatten()
    mask = torch.tensor([[True, True, False], [True, True, False]])
    one, two = attention_vectors(rows, mask, [1, 2], (2, 2))
    quarters = images.view(2, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2).flatten(1)  # 2 x 2 -> 16 x 16
    torch.testing.assert_close(one, quarters[0])
    torch.testing.assert_close(two, quarters.mean(0))


def test_an_images_tiles_are_put_together_again() -> None:
    """Two pictures of 2 x 3 tiles of 2 x 2 tokens: pooled as the whole grid would be, and the thumbnail as much as it."""
    grids, thumbnails = torch.rand(2, 4, 6), torch.rand(2, 2, 2)
    tiles = grids.view(2, 2, 2, 3, 2).transpose(2, 3).reshape(2, -1)  # row by row, each tile's tokens in order
    mask = torch.ones(1, 1, dtype=torch.bool)
    whole = attention_vectors(grids.view(1, 1, -1), mask, [2], (4, 6))
    found = attention_vectors(tiles.view(1, 1, -1), mask, [2], (2, 2), Tiling(columns=3, rows=2))
    torch.testing.assert_close(found, whole)
    small = attention_vectors(thumbnails.view(1, 1, -1), mask, [2], (2, 2))
    both = torch.cat([tiles, thumbnails.flatten(1)], dim=1)
    found = attention_vectors(both.view(1, 1, -1), mask, [2], (2, 2), Tiling(columns=3, rows=2, thumbnail=True))
    torch.testing.assert_close(found, (whole + small) / 2)


def test_margins_by_hand() -> None:
    logits = torch.tensor([[2.0, 5.0, 1.0], [2.0, 5.0, 1.0], [0.0, 0.0, -torch.inf]])
    margins = label_margins(logits, torch.tensor([1, 0, 0]))
    share = torch.tensor([2.0, 5.0, 1.0]).softmax(0)
    torch.testing.assert_close(margins[:, 0], torch.tensor([3.0, -3.0, 0.0]))
    torch.testing.assert_close(margins[:, 1], torch.tensor([1.0, -1.0, 0.0]) * (share[1] - share[0]))


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(1, [0]), (3, [0, 3, 6]), (10, list(range(10))), (12, [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9])],
)
def test_bins_of_an_answer(num_tokens: int, expected: list[int]) -> None:
    answer = torch.zeros(1, 20, dtype=torch.bool)
    answer[0, 5 : 5 + num_tokens] = True
    assert answer_bins(answer).tolist() == expected


def test_autocast_does_not_reach_the_measuring() -> None:
    values, mask = torch.randn(2, 9, 8), torch.rand(2, 9) > 0.3
    expected = masked_mean(values, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masked_mean(values, mask), expected)
