"""Measures change seconds and memory alone."""

from __future__ import annotations

import pytest
from torch import Tensor

from benchmarks.distill import measures, released, variants
from benchmarks.distill.models import BenchmarkFolder

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}


def test_measures_do_not_change_gradients(benchmark_folder: BenchmarkFolder) -> None:
    """What the benchmark switches on one by one computes the same thing; a second step reads what the first one kept."""
    window = variants.released_inputs(benchmark_folder, "records")
    everything = measures.MeasuredStep(benchmark_folder, measures.Measures.named("all"), released.MIXED, {})
    plain = measures.MeasuredStep(benchmark_folder, measures.Measures(), released.MIXED, {})
    student = released.load_student(benchmark_folder.student)
    teachers = {name: released.load_teacher(path) for name, path in benchmark_folder.teachers.items()}
    for inputs in (*window, window[0]):
        expected = values(released.released_losses(student, teachers, inputs, released.MIXED[inputs.capability]))
        for step in (everything, plain):
            found = values(step.losses(inputs))
            assert found == pytest.approx(expected, rel=1e-4)  # fp32 sums of 1e-8 in another order
