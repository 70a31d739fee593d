"""Which layers learn from which, and the signals' losses against plain loops.

B = 2 packs, N = 3 samples, S = 9 positions
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drivekd.config import SignalConfig
from drivekd.data.batch import Batch
from drivekd.distill.signals import (
    CountedRows,
    Form,
    LossKind,
    Places,
    Signal,
    group_layers,
    places_of,
    signal_for,
    signal_loss,
    text_to_vision_places,
)
from drivekd.errors import ConfigError
from drivekd.sample import Sample

pytestmark = pytest.mark.numerics

DEPTHS = {"1B": 24, "2B": 28, "8B": 28, "14B": 48, "38B": 64, "78B": 80}  # InternVL3's language models


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


def test_kl_compares_words_and_no_layers() -> None:
    signal = signal_for("reasoning", SignalConfig(loss="kl"), 24, 28, "window")
    assert (signal.student_layers, signal.teacher_groups, signal.teacher_layers) == ((), (), ())


@pytest.mark.parametrize("form", ["text_to_vision", "full_map"])
def test_a_form_may_be_chosen(form: Any) -> None:
    for capability in ("perception", "reasoning", "planning"):
        assert signal_for(capability, SignalConfig(form=form), 24, 28, "window").form == form  # type: ignore[arg-type]


@pytest.mark.parametrize("capability", ["reasoning", "planning"])
def test_a_model_of_one_layer_has_no_layer_before_its_last(capability: Any) -> None:
    with pytest.raises(ConfigError, match=f"signals.{capability}.student_layers"):
        signal_for(capability, SignalConfig(), 1, 28, "window")


# --- rows and columns -----------------------------------------------------------------------------------------------

# Two packs: a prefix of 4 (two of them vision) with questions of 2 and 3, of which the second is unlabelled; a prefix of 3 (one
# of them vision) with one question of 3 and padding.
SEGMENT = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, -1, -1, -1]])
VISION = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
ANSWER = torch.tensor([[0, 0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0, 0]], dtype=torch.bool)
N, B, S = 3, 2, 9
FORMS: tuple[Form, ...] = ("text_to_vision", "full_map")
COUNTED: tuple[CountedRows, ...] = ("all", "question", "answer")


@pytest.fixture(scope="module")
def batch() -> Batch:
    zeros = torch.zeros(B, S, dtype=torch.long)
    samples = tuple(Sample(f"record {n}", "planning", "q", None if n == 1 else "a", (Path("x.png"),)) for n in range(N))
    return Batch(
        input_ids=zeros,
        labels=zeros,
        segment=SEGMENT,
        positions=zeros[None],
        vision_mask=VISION,
        prompt_mask=(SEGMENT >= 0) & ~ANSWER,
        pack=torch.tensor([0, 0, 1]),
        question=torch.tensor([1, 2, 1]),
        capability=torch.full((N,), 2),
        labelled=torch.tensor([True, False, True]),
        images=((Path("x.png"),),) * 2,
        samples=samples,
    )


def pairs_of(form: Form, counted: CountedRows, sample: int) -> list[tuple[int, int]]:
    """docs/method.md, "Signals", word by word: which (row, column) of its pack's map is a sample's, visible or not."""
    pack, question = ((0, 1), (0, 2), (1, 1))[sample]
    own = [i for i in range(S) if SEGMENT[pack, i] in (0, question)]
    unlabelled = sample == 1
    rows = {
        "all": own,
        "question": [i for i in own if not ANSWER[pack, i]],
        "answer": [i for i in own if ANSWER[pack, i] or unlabelled],
    }[counted]
    if form == "text_to_vision":
        return [(i, j) for i in rows if not VISION[pack, i] for j in range(S) if VISION[pack, j]]
    columns = own if counted != "question" else rows
    return [(i, j) for i in rows for j in columns]


def visible_map(seed: int) -> Tensor:
    """[B, S, S] as attention makes it: nothing later, nothing of another question, nothing of padding."""
    values = torch.rand((B, S, S), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    same = SEGMENT[:, :, None] == SEGMENT[:, None]
    return (values * (same | (SEGMENT[:, None] == 0))).tril()


def at(places: Places, whole: Tensor) -> Tensor:
    rows = torch.stack([whole[b][places.rows[b]] for b in range(B)])
    return torch.stack([rows[b][:, places.columns[b]] for b in range(B)])


def test_text_rows_and_vision_columns(batch: Batch) -> None:
    places = text_to_vision_places(batch)
    text = [[0, 3, 4, 5, 6, 7, 8], [0, 2, 3, 4, 5]]
    assert [row[mask].tolist() for row, mask in zip(places.rows, places.row_mask, strict=True)] == text
    assert [row[mask].tolist() for row, mask in zip(places.columns, places.column_mask, strict=True)] == [[1, 2], [1]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counted", COUNTED)
@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_signal_loss_equals_a_plain_loop(batch: Batch, form: Form, counted: CountedRows, loss: LossKind) -> None:
    signal = Signal("reasoning", form, loss, (0, 2), ((0,), (1,)))
    places = places_of(form, batch)
    students, teachers = ([visible_map(seed) for seed in seeds] for seeds in ((0, 1), (2, 3)))
    expected = []
    for sample in range(N):
        pack, pairs = (0, 0, 1)[sample], pairs_of(form, counted, sample)
        layers = []
        for student, teacher in zip(students, teachers, strict=True):
            s, t = (torch.stack([whole[pack, i, j] for i, j in pairs]) for whole in (student, teacher))
            layers.append(float((s - t).square().mean()) if loss == "mse" else 1 - float(torch.cosine_similarity(s, t, dim=0)))
        expected.append(sum(layers) / 2)
    maps = [[at(places, whole) for whole in wholes] for wholes in (students, teachers)]
    found = signal_loss(signal, *maps, batch, places, counted)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counted", COUNTED)
@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_what_is_not_a_samples_does_not_matter(batch: Batch, form: Form, counted: CountedRows, loss: LossKind) -> None:
    """Rows of padding, padded places, and for each sample the other questions' rows: the teacher may say there what it likes."""
    signal = Signal("reasoning", form, loss, (0,), ((0,),))
    places = places_of(form, batch)
    student, teacher = at(places, visible_map(0)), at(places, visible_map(2))
    before = signal_loss(signal, [student], [teacher], batch, places, counted)
    padded = ~(places.row_mask[:, :, None] & places.column_mask[:, None])
    assert torch.equal(signal_loss(signal, [student], [teacher.masked_fill(padded, 77.0)], batch, places, counted), before)
    others = (batch.segment.gather(1, places.rows) == 2)[:, :, None]
    changed = signal_loss(signal, [student], [teacher.masked_fill(others, 0.3)], batch, places, counted)
    assert torch.equal(changed[[0, 2]], before[[0, 2]])
    assert changed[1] != before[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_a_perfect_student_pays_nothing(batch: Batch, form: Form, loss: LossKind) -> None:
    signal = Signal("planning", form, loss, (1,), ((0,),))
    places = places_of(form, batch)
    same = at(places, visible_map(4))
    torch.testing.assert_close(
        signal_loss(signal, [same], [same], batch, places, "all"), torch.zeros(3).double(), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("loss", ["mse", "cosine"])
@pytest.mark.parametrize("empty", [0.0, 1e-30])
def test_maps_of_nothing_have_finite_losses_and_gradients(batch: Batch, loss: LossKind, empty: float) -> None:
    """A cosine's root at 0 has an infinite slope, and infinity times a masked 0 is NaN."""
    signal = Signal("planning", "text_to_vision", loss, (1,), ((0,),))
    places = text_to_vision_places(batch)
    student = torch.full_like(at(places, visible_map(0)), empty).float().requires_grad_()
    found = signal_loss(signal, [student], [at(places, visible_map(1)).float()], batch, places, "all")
    found.sum().backward()
    assert bool(found.isfinite().all())
    assert student.grad is not None and bool(student.grad.isfinite().all())
