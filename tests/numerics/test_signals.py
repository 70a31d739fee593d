"""Which layers learn from which, and the signals' losses against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drivekd.config import SignalConfig
from drivekd.distill.signals import Signal, group_layers, signal_for, signal_loss, text_to_vision_pairs
from drivekd.errors import ConfigError

DEPTHS = {"1B": 24, "2B": 28, "8B": 28, "14B": 48, "38B": 64, "78B": 80}  # InternVL3's language models, METHOD section 1


def reasoning(student_depth: int, teacher_depth: int, grouping: Any = "window", **layers: Any) -> Signal:
    return signal_for("reasoning", SignalConfig(**layers), student_depth, teacher_depth, grouping)


# --- grouping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("teacher", "width"), [("8B", 5), ("14B", 25), ("38B", 41)])
def test_the_released_window_for_a_1b_student(teacher: str, width: int) -> None:
    signal = reasoning(DEPTHS["1B"], DEPTHS[teacher])
    assert {len(group) for group in signal.teacher_groups} == {width}
    assert signal.student_layers == tuple(range(23))  # 0..-2 inclusive
    assert signal.teacher_groups == tuple(tuple(range(i, i + width)) for i in range(23))  # stride 1
    assert signal.teacher_layers == tuple(range(DEPTHS[teacher] - 1))


def test_a_deeper_students_last_layers_all_copy_one_teacher_layer() -> None:
    signal = reasoning(student_depth=36, teacher_depth=28)  # Qwen2.5-VL 3B from 7B
    assert signal.teacher_groups == tuple((min(i, 26),) for i in range(35))


@given(k=st.integers(1, 40), m=st.integers(1, 80))
def test_window_moves_by_one_layer_and_ends_at_the_last(k: int, m: int) -> None:
    groups = group_layers(range(k), range(m), "window")
    assert len(groups) == k
    assert {len(group) for group in groups} == {max(1, m - k + 1)}
    starts = [group[0] for group in groups]
    assert starts == [min(i, m - len(groups[0])) for i in range(k)]
    assert groups[-1][-1] == min(m, k + len(groups[0]) - 1) - 1


@given(k=st.integers(1, 40), m=st.integers(1, 80))
def test_proportional_covers_every_teacher_layer_in_order(k: int, m: int) -> None:
    groups = group_layers(range(k), range(m), "proportional")
    assert len(groups) == k
    assert sorted({layer for group in groups for layer in group}) == list(range(m))
    assert all(group == list(range(group[0], group[-1] + 1)) for group in groups)
    bounds = [(group[0], group[-1]) for group in groups]
    assert bounds == sorted(bounds)


@given(k=st.integers(1, 40), m=st.integers(1, 80))
def test_proportional_takes_every_layer_that_a_share_touches(k: int, m: int) -> None:
    """Student layer i stands for [i m / k, (i + 1) m / k) of the teacher's depth; layer j for [j, j + 1)."""
    touched = [[j for j in range(m) if j * k < (i + 1) * m and (j + 1) * k > i * m] for i in range(k)]
    assert group_layers(range(k), range(m), "proportional") == touched


@given(k=st.integers(1, 40), factor=st.integers(1, 4))
def test_proportional_shares_are_equal_where_they_can_be(k: int, factor: int) -> None:
    groups = group_layers(range(k), range(k * factor), "proportional")
    assert groups == [list(range(i * factor, (i + 1) * factor)) for i in range(k)]


@pytest.mark.parametrize("scheme", ["window", "proportional"])
def test_equal_depths_pair_layer_by_layer_and_names_are_kept(scheme: Any) -> None:
    assert group_layers([3, 5, 9], [2, 4, 20], scheme) == [[2], [4], [20]]


def test_no_layers_cannot_be_grouped() -> None:
    for student, teacher in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="at least one student layer and one teacher layer"):
            group_layers(student, teacher)


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "student", "groups", "form"),
    [
        ("perception", (0,), ((0,),), "text_to_vision"),
        ("planning", (22,), ((26,),), "text_to_vision"),
        ("reasoning", tuple(range(23)), None, "full_map"),
    ],
)
def test_the_papers_layers_are_the_default(capability: Any, student: tuple[int, ...], groups: Any, form: str) -> None:
    signal = signal_for(capability, SignalConfig(), 24, 28, "window")
    assert signal.student_layers == student
    assert signal.form == form
    assert groups is None or signal.teacher_groups == groups


def test_chosen_layers_count_from_either_end_and_are_sorted() -> None:
    signal = reasoning(24, 28, student_layers=[-1, 3, 3], teacher_layers=[-2, 0])
    assert signal.student_layers == (3, 23)
    assert signal.teacher_groups == ((0,), (26,))


@pytest.mark.parametrize(
    ("layers", "who", "outside", "known"),
    [
        ({"student_layers": [24]}, "student", "[24]", "0..23"),
        ({"student_layers": [0, -25]}, "student", "[-25]", "0..23"),
        ({"teacher_layers": [28, 30]}, "teacher", "[28, 30]", "0..27"),
    ],
)
def test_a_layer_that_does_not_exist_is_named(layers: dict[str, list[int]], who: str, outside: str, known: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reasoning(24, 28, **layers)
    text = str(caught.value)
    assert text.startswith(f"signals.reasoning.{who}_layers: {outside} ")
    assert known in text


@pytest.mark.parametrize("capability", ["reasoning", "planning"])
def test_a_model_of_one_layer_has_no_layer_before_its_last(capability: Any) -> None:
    with pytest.raises(ConfigError, match=f"signals.{capability}.student_layers"):
        signal_for(capability, SignalConfig(), 1, 28, "window")


# --- losses ---------------------------------------------------------------------------------------------------------


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


B, S = 2, 6
VISION = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)
ROWS = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)  # the second sample is shorter


def maps(layers: range, seed: int) -> dict[int, Tensor]:
    return {layer: rand(B, S, S, seed=seed + layer).tril() for layer in layers}


def test_pairs_are_text_rows_times_vision_columns() -> None:
    mask = text_to_vision_pairs(VISION, ROWS)
    for b in range(B):
        for i in range(S):
            for j in range(S):
                assert bool(mask[b, i, j]) == bool(ROWS[b, i] and not VISION[b, i] and VISION[b, j])


@pytest.mark.parametrize("form", ["text_to_vision", "full_map"])
def test_signal_loss_equals_a_plain_loop(form: Any) -> None:
    signal = Signal("reasoning", form, (0, 2), ((0, 1, 3), (2,)))
    student, teacher = maps(range(3), 0), maps(range(4), 50)
    expected = torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        for layer, group in zip(signal.student_layers, signal.teacher_groups, strict=True):
            total, count = 0.0, 0
            for i in range(S):
                for j in range(S):
                    is_pair = ROWS[b, i] and (ROWS[b, j] if form == "full_map" else bool(not VISION[b, i]) and bool(VISION[b, j]))
                    if is_pair:
                        target = sum(float(teacher[t][b, i, j]) for t in group) / len(group)
                        total += (float(student[layer][b, i, j]) - target) ** 2
                        count += 1
            expected[b] += total / count / len(signal.student_layers)
    found = signal_loss(signal, student, teacher, VISION, ROWS)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["text_to_vision", "full_map"])
def test_rows_that_do_not_count_do_not_matter(form: Any) -> None:
    signal = Signal("reasoning", form, (0,), ((0,),))
    student, teacher = maps(range(1), 0), maps(range(1), 9)
    before = signal_loss(signal, student, teacher, VISION, ROWS)
    teacher[0][1, 4:] = 77.0  # the second sample's rows behind its end
    teacher[0][1, :, 4:] = 77.0
    assert torch.equal(signal_loss(signal, student, teacher, VISION, ROWS), before)


@pytest.mark.parametrize("form", ["text_to_vision", "full_map"])
def test_a_perfect_student_pays_nothing(form: Any) -> None:
    teacher = maps(range(3), 4)
    signal = Signal("planning", form, (1,), ((0, 2),))
    student = {1: (teacher[0] + teacher[2]) / 2}
    assert signal_loss(signal, student, teacher, VISION, ROWS).tolist() == [0.0, 0.0]
