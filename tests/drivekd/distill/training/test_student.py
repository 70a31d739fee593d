"""How the student is prepared: which weights train, by what names, and what recomputation changes (nothing)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny_run import TinyRun, start_trainer, stepped

from drivekd.distill.training.student import Student, load_student
from drivekd.distill.training.trainer import Trainer
from drivekd.hf_checkpoint import Checkpoint
from drivekd.models import modules_of

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

PARTS = ("vision_encoder", "projector", "language_model")
Start = Callable[..., Trainer]


@pytest.fixture
def start(family_run: TinyRun) -> Start:
    return partial(start_trainer, family_run)


def loaded(run: TinyRun, *overrides: str) -> Student:
    config = run.config(*overrides)
    return load_student(
        Checkpoint.open(config.student.checkpoint), config.student, torch.device("cpu"), config.data.camera_size_px
    )


@pytest.mark.parametrize("parts", [PARTS[:1], PARTS[1:2], PARTS[2:], PARTS[1:], PARTS])
def test_exactly_the_named_parts_train(family_run: TinyRun, parts: tuple[str, ...]) -> None:
    student = loaded(family_run, f"student.train=[{','.join(parts)}]")
    expected = {p for name in PARTS if name in parts for module in modules_of(student.model, name) for p in module.parameters()}
    assert set(student.names) == expected
    assert {p for p in student.model.parameters() if p.requires_grad} == expected
    assert student.frozen_vision == (parts == PARTS[2:])


def test_names_are_unique_and_masters_are_fp32(family_run: TinyRun) -> None:
    student = loaded(family_run, "training.precision=bf16")
    assert len(set(student.names.values())) == len(student.names)
    assert all(student.model.get_parameter(name) is parameter for parameter, name in student.names.items())
    assert {parameter.dtype for parameter in student.model.parameters()} == {torch.float32}


def test_only_the_named_parts_move(start: Start) -> None:
    for part in PARTS:
        trainer = start(f"student.train=[{part}]")
        before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
        named = {id(p) for module in modules_of(trainer.student, part) for p in module.parameters()}
        trainer.step()
        state = dict(trainer.student.named_parameters(remove_duplicate=False))
        moved = {name for name, value in state.items() if not torch.equal(before[name], value)}
        assert moved
        assert all(id(state[name]) in named for name in moved)


@pytest.mark.parametrize("lora", [(), ("student.lora={rank: 4, dropout: 0.2}",)], ids=["full", "lora"])
def test_recomputing_layers_changes_nothing(start: Start, lora: tuple[str, ...]) -> None:
    """Also with dropout, whose mask must be the forward's."""
    settings = ("student.train=[language_model]", *lora)
    plain, recomputed = start(*settings), start(*settings, "student.gradient_checkpointing=true")
    for _ in range(2):
        expected, found = stepped(plain), stepped(recomputed)
        assert found[0]["loss"] == expected[0]["loss"]
        assert torch.equal(found[1], expected[1])  # the same operations on the same numbers, twice
