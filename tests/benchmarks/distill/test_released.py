"""The benchmark's baseline against equations by hand, our trainer against the baseline, the released code's defects shown absent.

The trainer is asked through its public face alone: its configuration, `step()`'s record, and what AdamW is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import TinyRun, start_trainer, stepped
from torch import Tensor

from benchmarks.distill import released
from drivekd.data.readers import read_samples
from drivekd.distill.projection import agp_coefficients
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import ConfigError
from drivekd.hf_checkpoint import load_processor
from drivekd.models.internvl import load_model
from drivekd.sample import CAPABILITIES

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

Start = Callable[..., Trainer]
LABELLED_ONLY = (
    "data.unlabelled=[]",
    "training.unlabelled_batch_size=0",
    "student.train=[language_model]",
    "signals.weighting=static",
)


@pytest.fixture
def start(tiny_run: TinyRun) -> Start:
    """A trainer on labelled records that trains the language model alone, as the baseline does."""
    return partial(start_trainer, tiny_run, *LABELLED_ONLY)


@pytest.fixture(scope="module")
def samples(tiny_run: TinyRun) -> list[Any]:
    """Six labelled samples, two of each capability, as the baseline takes them."""
    processor = load_processor(tiny_run.student)
    return [released.inputs_from_sample(s, processor) for s in read_samples(tiny_run.folder / "train.json")[:6]]


@pytest.fixture(scope="module")
def student(tiny_run: TinyRun) -> Any:
    return released.load_student(tiny_run.student)


@pytest.fixture(scope="module")
def teachers(tiny_run: TinyRun) -> dict[str, Any]:
    return dict.fromkeys(CAPABILITIES, released.load_teacher(tiny_run.teacher))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}


def flat(gradient: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in gradient])


# --- the baseline's equations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student_layers", "teacher_layers", "first", "last"),
    [
        (23, 27, range(5), range(22, 27)),
        (23, 47, range(25), range(22, 47)),
        (3, 3, range(1), range(2, 3)),
        (5, 2, range(1), range(1, 2)),
    ],
)
def test_windows_are_the_released_ones(student_layers: int, teacher_layers: int, first: range, last: range) -> None:
    """Windows of 5 and 25 (docs/method.md, "Layer groups"); a deeper student repeats the teacher's last layer."""
    found = released.windows(student_layers, teacher_layers)
    assert (len(found), found[0], found[-1]) == (student_layers, first, last)


def test_text_to_vision_by_hand() -> None:
    """Positions text, vision, text; two heads against one. M holds (0, 1) and (2, 1): errors 0 and .3."""
    ours = torch.tensor([[[[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.6, 0.2]], [[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.4, 0.4]]]])
    theirs = torch.tensor([[[[1, 0, 0], [0.9, 0.1, 0], [0.1, 0.2, 0.7]]]])
    found = released.text_to_vision(ours, theirs, torch.tensor([[False, True, False]]))
    assert float(found) == pytest.approx(0.3**2 / 2, rel=1e-6)


def test_losses_equal_the_equations_written_as_loops(student: Any, teachers: dict[str, Any], samples: list[Any]) -> None:
    inputs = samples[2]  # planning: two pictures
    found = values(released.released_losses(student, teachers, inputs, released.MIXED["planning"]))
    logits, ours = released.forward(student, inputs)
    _, theirs = released.forward(teachers["planning"], inputs)
    s, t = ([a[0].mean(0).double().tolist() for a in maps] for maps in (ours, theirs))
    length, vision = inputs.input_ids.shape[1], inputs.vision_mask[0].tolist()
    everywhere = list(itertools.product(range(length), range(length)))
    pairs = [(i, j) for i, j in everywhere if not vision[i] and vision[j]]

    def block(layer: int) -> float:
        return sum((s[layer][i][j] - t[layer][i][j]) ** 2 for i, j in pairs) / len(pairs)

    def whole(layer: int, group: tuple[int, int]) -> float:
        return sum((s[layer][i][j] - sum(t[g][i][j] for g in group) / 2) ** 2 for i, j in everywhere) / length**2

    log_probabilities = logits[0].detach().double().log_softmax(-1)
    answer = [p for p in range(length) if inputs.labels[0, p] >= 0]
    ce = -sum(float(log_probabilities[p - 1, inputs.input_ids[0, p]]) for p in answer) / len(answer)
    reasoning = (whole(0, (0, 1)) + whole(1, (1, 2))) / 2  # 2 of 3 student layers, 3 of 4 teacher layers: windows of 2
    expected = {"ce": ce, "perception": 0.1 * block(0), "reasoning": 0.1 * reasoning, "planning": 0.8 * block(-2)}
    assert found == pytest.approx(expected, rel=1e-5)  # fp32 against float64


def test_gradients_are_those_of_the_losses(student: Any, teachers: dict[str, Any], samples: list[Any]) -> None:
    weights = {"ce": 2.0, "planning": 250.0}
    for row in (released.MIXED["planning"], released.ROUTED["planning"]):
        found, logged = released.released_gradients(student, teachers, samples[2], row, weights)
        losses = released.released_losses(student, teachers, samples[2], row, weights)
        assert list(found) == list(logged) == ["ce", *(name for name in CAPABILITIES if row[name] > 0)]
        for name, loss in losses.items():
            expected = torch.autograd.grad(loss, released.trainable(student), retain_graph=True, materialize_grads=True)
            assert relative_error(flat(found[name]), flat(expected)) <= 1e-6  # fp32, the same operations
        assert all(parameter.grad is None for parameter in student.parameters())


def test_agp_by_hand() -> None:
    """Stage 1 takes (-1, 0) out of the first follower; the second agrees with CE. Then M = (1, 1), (2, -4): product -2."""
    anchor, followers = [torch.tensor([1.0, 0.0])], [[torch.tensor([-1.0, 1.0])], [torch.tensor([1.0, -4.0])]]
    assert released.agp(anchor, followers, [0, 1], stages=[1])[0].tolist() == [3.0, -3.0]
    first = torch.tensor([1.0, 1.0]) + 2 / 20 * torch.tensor([2.0, -4.0])
    second = torch.tensor([2.0, -4.0]) + 2 / 2 * torch.tensor([1.0, 1.0])
    torch.testing.assert_close(released.agp(anchor, followers, [0, 1])[0], first + second)


def test_explicit_projection_equals_coefficients() -> None:
    """Over families whose followers often conflict, in parts of several shapes."""
    rng = torch.Generator().manual_seed(0)
    for order in itertools.islice(itertools.cycle(itertools.permutations(range(3))), 60):
        base = torch.randn(40, generator=rng)
        vectors = [torch.randn(40, generator=rng) + sign * base for sign in (1, -1, -0.5, 1)]
        gradients = [[v[:12].view(3, 4), v[12:]] for v in vectors]
        matrix = torch.stack(vectors).double()
        coefficients = agp_coefficients(matrix @ matrix.T, [index + 1 for index in order])
        found = flat(released.agp(gradients[0], gradients[1:], order)).double()
        assert relative_error(found, coefficients @ matrix) <= 1e-5  # fp32 vectors; near-cancelling families lose a digit


def test_a_step_is_the_mean_of_its_samples_updates(tiny_run: TinyRun, teachers: dict[str, Any], samples: list[Any]) -> None:
    """Also of a window that is not full: three samples count a third each."""
    student = released.load_student(tiny_run.student)
    before = flat([p.detach().clone() for p in released.trainable(student)])
    updates = []
    for inputs in samples[:3]:
        gradients, _ = released.released_gradients(student, teachers, inputs, released.ROUTED[inputs.capability])
        anchor, *followers = gradients.values()
        updates.append(flat(released.agp(anchor, followers, [0])))
    optimizer = torch.optim.SGD(released.trainable(student), lr=1.0)
    rng = np.random.default_rng(0)
    released.released_step(student, teachers, samples[:3], released.ROUTED, optimizer, rng)
    moved = before - flat([p.detach() for p in released.trainable(student)])
    assert relative_error(moved, torch.stack(updates).mean(0)) <= 1e-5  # fp32


# --- our trainer against the baseline ---------------------------------------------------------------------------------


def test_our_update_of_one_sample_is_the_baselines(
    start: Start, teachers: dict[str, Any], student: Any, tiny_run: TinyRun
) -> None:
    """Gradients, weights, both stages; for one of the orders that stage 2 may draw."""
    weights = dict.fromkeys(CAPABILITIES, 3e3)
    settings = ("signals.mixing=released", "training.batch_size=1", "projection.unit=micro_batch")
    trainer = start(*settings, *(f"signals.{name}.weight={weight}" for name, weight in weights.items()))
    record, update = stepped(trainer)
    processor = load_processor(tiny_run.student)
    errors = []
    for sample in read_samples(tiny_run.folder / "train.json"):
        inputs = released.inputs_from_sample(sample, processor)
        gradients, _ = released.released_gradients(student, teachers, inputs, released.MIXED[inputs.capability], weights)
        anchor, *followers = gradients.values()
        errors += [
            relative_error(update, flat(released.agp(anchor, followers, order))) for order in itertools.permutations(range(3))
        ]
    assert record["stage_1_fired"] > 0
    assert min(errors) <= 1e-5  # fp32; of 18 samples and 6 orders, ours is one
    assert np.median(errors) > 1e-2  # and not any


# --- docs/method.md, "What the released code gets wrong" ------------------------------------------------------------------


def test_defect_1_small_steps_move_every_weight_under_bf16(start: Start, tiny_run: TinyRun) -> None:
    """At 5e-5 a bf16 weight of 1/64 or more is rounded back to itself; fp32 masters are not."""
    trainer = start("training.precision=bf16", "optimizer.learning_rate=5e-5")
    names = [name for name, parameter in trainer.student.named_parameters() if parameter.requires_grad]
    control = {name: p.detach().bfloat16() for name, p in trainer.student.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trainer.student.named_parameters() if p.requires_grad}
    start_of_control = {name: value.clone() for name, value in control.items()}
    optimizer = torch.optim.AdamW(list(control.values()), lr=5e-5, weight_decay=0.0)
    for _ in range(3):
        trainer.step()
        for name, parameter in trainer.student.named_parameters():
            if parameter.grad is not None:
                control[name].grad = parameter.grad.bfloat16()
        optimizer.step()
    after = dict(trainer.student.named_parameters())
    large = torch.cat([(before[name].abs() >= 1 / 64).flatten() for name in names])
    moved = torch.cat([(after[name] != before[name]).flatten() for name in names])
    control_moved = torch.cat([(control[name] != start_of_control[name]).flatten() for name in names])
    assert float(moved.float().mean()) > 0.999
    assert float(control_moved[large].float().mean()) < 0.05


def test_defect_2_maps_without_eager_attention(start: Start, tiny_run: TinyRun, student: Any, teachers: dict[str, Any]) -> None:
    """transformers gives no maps under SDPA; the trainer, which runs SDPA, sees the maps of eager attention."""
    sample = read_samples(tiny_run.folder / "train.json")[0]
    inputs = released.inputs_from_sample(sample, load_processor(tiny_run.student))
    silent = load_model(tiny_run.student, attention="sdpa")
    output = silent(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values, output_attentions=True, use_cache=False)
    assert not output.attentions
    trainer = start("training.batch_size=18", "signals.mixing=released")
    assert trainer.student.config.text_config._attn_implementation != "eager"
    found = trainer.step()["loss"]
    totals = dict.fromkeys(("ce", *CAPABILITIES), 0.0)
    for sample in read_samples(tiny_run.folder / "train.json"):
        inputs = released.inputs_from_sample(sample, load_processor(tiny_run.student))
        losses = values(released.released_losses(student, teachers, inputs, released.MIXED[inputs.capability]))
        totals = {name: total + losses[name] for name, total in totals.items()}
    shares = {"ce": 18.0, **dict.fromkeys(CAPABILITIES, 6 * 0.8 + 12 * 0.1)}  # the record holds means over a term's own samples
    assert found == pytest.approx({name: total / shares[name] for name, total in totals.items()}, rel=1e-4)  # fp32


@pytest.mark.parametrize("mixing", ["routed", "released"])
@pytest.mark.parametrize("subset", [s for size in range(4) for s in itertools.combinations(CAPABILITIES, size)])
def test_defect_3_any_subset_of_teachers_trains(start: Start, tiny_run: TinyRun, subset: tuple[str, ...], mixing: str) -> None:
    chosen = ", ".join(f"{name}: {tiny_run.teacher}" for name in subset)
    trainer = start(f"teachers={{{chosen}}}", f"signals.mixing={mixing}")
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    record = trainer.step()
    assert set(record["loss"]) == {"ce", *subset}
    assert all(np.isfinite(value) and value > 0 for value in record["loss"].values())
    assert any(not torch.equal(value, before[name]) for name, value in trainer.student.state_dict().items())


def test_defect_3_a_fourth_teacher_is_refused_by_name(start: Start, tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match=r"unknown key teachers\.steering; known here: .*planning"):
        start(f"teachers.steering={tiny_run.teacher}")


def test_defect_5_a_short_last_micro_batch_weighs_rightly(start: Start) -> None:
    """7 samples as micro-batches of 7, 3 and 1: the last one of each capability is partial."""
    settings = ("training.batch_size=7", "projection.method=sum", "signals.mixing=released", "signals.planning.weight=1000")
    updates = [stepped(start(*settings, f"training.micro_batch_size={size}"))[1] for size in (7, 3, 1)]
    for update in updates[1:]:
        assert relative_error(update, updates[0]) <= 1e-5  # fp32: sums in another order


def test_defect_5_logged_losses_are_of_the_present_weights(start: Start, tiny_run: TinyRun) -> None:
    """Each step's record is compared with the baseline on the weights that the step started from."""
    trainer = start("training.batch_size=18", "optimizer.learning_rate=1e-3")
    processor = load_processor(tiny_run.student)
    window = [released.inputs_from_sample(s, processor) for s in read_samples(tiny_run.folder / "train.json")]
    student = released.load_student(tiny_run.student)
    logged = []
    for _ in range(3):
        student.load_state_dict(trainer.student.state_dict())
        with torch.no_grad():
            losses = [float(released.cross_entropy(released.forward(student, i)[0], i.labels)) for i in window]
        logged.append(trainer.step()["loss"]["ce"])
        assert logged[-1] == pytest.approx(np.mean(losses), rel=1e-4)  # fp32
    assert logged[0] - logged[2] > 1e-2  # the weights did move in between
