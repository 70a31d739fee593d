"""Our trainer's gradients are the baseline's, read off what AdamW is given."""

from __future__ import annotations

import pytest

from benchmarks.distill.agreement import agreement
from benchmarks.distill.models import BenchmarkFolder
from benchmarks.distill.variants import MixingName
from drivekd.sample import CAPABILITIES

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("mixing", ["released", "routed"])
def test_our_gradients_are_the_baselines(benchmark_folder: BenchmarkFolder, mixing: MixingName) -> None:
    errors = agreement(benchmark_folder, mixing)
    assert list(errors) == ["ce", *CAPABILITIES]
    assert max(errors.values()) <= 1e-5, errors  # fp32, before any approximation: issue 3's bound
