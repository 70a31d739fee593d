"""What a checkpoint holds and restores, what a resumed run refuses, best/ and early stops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_run import NO_TEACHERS, TinyRun, start_trainer

from drivekd.distill.training.checkpoint import Validations, newest_checkpoint, step_directories
from drivekd.distill.training.resume import check_inputs, input_digests, input_files
from drivekd.distill.training.run_files import RunFiles
from drivekd.distill.training.train import train
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import CheckpointError, ConfigError
from drivekd.log import read_metrics
from drivekd.models import load_model

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

SHORT = ("training.steps=4", "training.batch_size=3", "training.micro_batch_size=2", *NO_TEACHERS)
DYNAMIC = ("signals.weighting=dynamic", *(f"signals.{name}.weight=20" for name in ("perception", "reasoning", "planning")))


def same_files(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a), load_file(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- the best validation --------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_validations_remember_the_lowest_and_how_long_ago(losses: Sequence[float]) -> None:
    seen = Validations()
    for step, loss in enumerate(losses):
        seen = seen.after(step, loss)
    assert seen.last == losses[-1]
    assert seen.best == min(losses)
    assert seen.best_step == losses.index(min(losses))  # of equals the first
    assert seen.without_gain == len(losses) - 1 - losses.index(min(losses))
    for patience in range(len(losses) + 1):
        assert seen.exhausted(patience) == (patience > 0 and seen.without_gain >= patience)


# --- what is restored -----------------------------------------------------------------------------------------------


def test_everything_comes_back(family_run: TinyRun, tmp_path: Path) -> None:
    """Weights, moments, dynamic weights and step: the next step of the restored run is the next step of the first."""
    first = start_trainer(family_run, *DYNAMIC)
    for _ in range(3):
        first.step()
    first.save(tmp_path, {"data.train[0]": "abc"}, Validations(2.0, 1.5, 2, 1))
    expected = first.step()
    second = start_trainer(family_run, *DYNAMIC)
    state = second.resume(tmp_path)
    assert (state.step, state.threads, state.torch) == (3, 1, torch.__version__)
    assert (state.inputs, state.validations) == ({"data.train[0]": "abc"}, Validations(2.0, 1.5, 2, 1))
    found = second.step()
    for key in ("loss", "weight", "gradient_norm", "conflict_cosine", "update_norm"):
        assert found[key] == expected[key], key
    weights = [dict(trainer.student.named_parameters()) for trainer in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert found["weight"] != start_trainer(family_run, *DYNAMIC).step()["weight"]  # they had moved


def test_a_checkpoint_is_a_model_that_others_read(family_run: TinyRun, tmp_path: Path) -> None:
    trainer = start_trainer(family_run, "student.train=[projector]")
    trainer.step()
    trainer.save(tmp_path, {}, Validations())
    found = load_model(tmp_path / "step-1").state_dict()
    expected = trainer.student.state_dict()
    assert found.keys() == expected.keys()  # frozen weights and tied ones, too
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_checkpoint_of_other_parts_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    adapters = ("student.train=[language_model]", "student.lora={rank: 2}")
    trainer = start_trainer(tiny_run, *adapters)
    trainer.step()
    trainer.save(tmp_path, {}, Validations())
    with pytest.raises(CheckpointError, match=r"no weights for .*lora_A.* of shape \[3, 32\]; it is of another student"):
        start_trainer(tiny_run, *adapters, "student.lora.rank=3").resume(tmp_path)


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-100", ".step-200.77.tmp", "notes"):
        (tmp_path / name).mkdir()
    assert [path.name for path in step_directories(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert step_directories(tmp_path / "none") == []
    with pytest.raises(CheckpointError, match="no complete checkpoint to resume from"):
        newest_checkpoint(tmp_path / "none")


# --- what the run learns from ---------------------------------------------------------------------------------------


@pytest.fixture
def own_run(tiny_run: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy whose files a test may change."""
    shutil.copytree(tiny_run.folder, tmp_path / "inputs")
    return TinyRun(tmp_path / "inputs")


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def stopped(run: TinyRun, out: Path, *overrides: str) -> Path:
    """A finished run as if it had stopped one step before its end."""
    train(run.config(*SHORT, *overrides, "training.checkpoint_every_steps=1"), out)
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "checkpoints" / "step-4")
    return out


def test_every_file_has_a_digest(tiny_run: TinyRun) -> None:
    keys = input_files(tiny_run.config()).keys()
    assert {"data.train[0]", "data.unlabelled[0]", "data.validation"} <= keys
    models = ("student.checkpoint", "teachers.perception", "teachers.reasoning", "teachers.planning")
    assert {f"{model}/model.safetensors" for model in models} <= keys
    assert input_digests(tiny_run.config()).keys() == keys


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("train.json", r"data\.train\[0\] = .*train\.json: had another content"),
        ("student/model.safetensors", r"student\.checkpoint/model\.safetensors = .*had another content"),
    ],
)
def test_changed_files_are_refused_and_named(own_run: TinyRun, tmp_path: Path, name: str, key: str) -> None:
    out = stopped(own_run, tmp_path / "run", "data.validation=null")
    path = own_run.folder / name
    records = path.read_bytes()
    path.write_bytes(records + b" ") if name.endswith("json") else changed(path)
    with pytest.raises(CheckpointError, match=key):
        train(own_run.config(*SHORT, "data.validation=null"), out, resume=True)
    assert not (out / "final").exists()


def test_a_changed_teacher_is_refused_and_named(own_run: TinyRun) -> None:
    config = own_run.config()
    before = input_digests(config)
    changed(own_run.teacher / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"teachers\.perception/model\.safetensors = .*teacher/model\.safetensors: had another"
    ):
        check_inputs(before, input_digests(config), input_files(config))
    (own_run.teacher / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"teachers\.perception/model\.safetensors: is gone; it was there when this run started"
    ):
        check_inputs(before, input_digests(config), input_files(config))
    with pytest.raises(CheckpointError, match=r"was not there when this run started"):
        check_inputs(input_digests(config), before, input_files(config))


def test_moved_files_are_the_same_files(own_run: TinyRun, tmp_path: Path) -> None:
    out = stopped(own_run, tmp_path / "run")
    train(own_run.config(*SHORT), tmp_path / "whole")
    own_run.folder.rename(tmp_path / "elsewhere")
    summary = train(TinyRun(tmp_path / "elsewhere").config(*SHORT), out, resume=True)
    assert same_files(summary.final / "model.safetensors", tmp_path / "whole" / "final" / "model.safetensors")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("projection.unit=micro_batch", "training.micro_batch_size=1"), "training.micro_batch_size"),
        (("training.packing=frame",), "training.packing"),
        (("student.lora={rank: 2}", "student.train=[language_model]"), "student.lora"),
    ],
)
def test_what_makes_another_run_is_refused(tiny_run: TinyRun, tmp_path: Path, overrides: Sequence[str], key: str) -> None:
    unit = [override for override in overrides if "unit" in override]
    out = stopped(tiny_run, tmp_path / "run", *unit)
    with pytest.raises(ConfigError, match=rf"was started with another .*{key}"):
        train(tiny_run.config(*SHORT, *overrides), out, resume=True)


def test_what_saves_memory_may_change(tiny_run: TinyRun, tmp_path: Path) -> None:
    """It is what the advice after running out of memory asks for."""
    out = stopped(tiny_run, tmp_path / "run")
    less = ("training.micro_batch_size=1", "student.gradient_checkpointing=true", "training.offload_gradients=true")
    assert train(tiny_run.config(*SHORT, *less), out, resume=True).steps == 4


def test_a_cache_within_the_run_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.directory = .*lies in --out .*put it beside"):
        train(tiny_run.config(*SHORT, f"cache.directory={tmp_path / 'run' / 'cache'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- best/ and early stops ------------------------------------------------------------------------------------------

LOSSES = (3.0, 2.0, 2.5, 2.0, 1.0, 0.5)  # with a patience of 2 it ends at the fourth; 2.0 again is not better
WATCHED = ("training.steps=6", "training.validate_every_steps=1", "training.checkpoint_every_steps=3", "training.batch_size=2")


@pytest.fixture
def given_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation loss of each step is written down; everything else is real."""
    monkeypatch.setattr(Trainer, "validate", lambda self: LOSSES[self.steps_done - 1])


@pytest.mark.usefixtures("given_losses")
def test_it_stops_early_and_final_is_the_best(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = tiny_run.config(*NO_TEACHERS, *WATCHED, "training.early_stop_patience=2", "training.keep_checkpoints=9")
    summary = train(config, tmp_path / "run")
    assert (summary.steps, summary.validation_loss) == (4, 2.0)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["validation_loss"] for record in records] == list(LOSSES[:4])
    assert [record["best_validation_step"] for record in records] == [1, 2, 2, 2]
    assert [record.get("stopped_early", False) for record in records] == [False, False, False, True]
    assert json.loads((summary.final / "validation.json").read_text()) == {"step": 2, "validation_loss": 2.0}
    steps = tmp_path / "run" / "checkpoints"
    assert [path.name for path in step_directories(steps)] == ["step-1", "step-2", "step-3", "step-4"]  # 3 by the clock
    for path in (summary.final, tmp_path / "run" / "best"):
        assert same_files(path / "model.safetensors", steps / "step-2" / "model.safetensors")
        assert load_model(path).config.model_type == "internvl"


@pytest.mark.usefixtures("given_losses")
def test_a_stopped_run_stays_stopped(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = tiny_run.config(*NO_TEACHERS, *WATCHED, "training.early_stop_patience=2")
    first = train(config, tmp_path / "run")
    shutil.copytree(first.final, tmp_path / "expected")
    shutil.rmtree(first.final)
    again = train(config, tmp_path / "run", resume=True)
    assert (again.steps, again.validation_loss) == (4, 2.0)
    assert same_files(again.final / "model.safetensors", tmp_path / "expected" / "model.safetensors")


@pytest.mark.usefixtures("given_losses")
def test_without_patience_final_is_the_last_and_best_lies_beside(tiny_run: TinyRun, tmp_path: Path) -> None:
    summary = train(tiny_run.config(*NO_TEACHERS, *WATCHED, "training.steps=3"), tmp_path / "run")
    assert (summary.steps, summary.validation_loss) == (3, 2.5)
    assert not (summary.final / "validation.json").exists()
    last = tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors"
    assert same_files(summary.final / "model.safetensors", last)
    assert not same_files(tmp_path / "run" / "best" / "model.safetensors", last)


@pytest.mark.usefixtures("given_losses")
def test_a_kill_before_best_is_written_costs_nothing(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the best step's checkpoint and its best/: the older best/ must not become final/."""
    config = tiny_run.config(*NO_TEACHERS, *WATCHED, "training.early_stop_patience=2", "training.keep_checkpoints=9")
    train(config, tmp_path / "whole")

    def killed(self: RunFiles, validations: Validations) -> None:
        if validations.best_step == 2:
            raise KeyboardInterrupt
        real(self, validations)

    real = RunFiles._write_best
    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "_write_best", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "best" / "validation.json").read_text())["step"] == 1
    train(config, tmp_path / "run", resume=True)
    for name in ("best/model.safetensors", "final/model.safetensors", "checkpoints/step-4/optimizer.safetensors"):
        assert same_files(tmp_path / "run" / name, tmp_path / "whole" / name)
    shutil.rmtree(tmp_path / "run" / "best")
    shutil.rmtree(tmp_path / "run" / "final")
    with pytest.raises(CheckpointError, match="best: is of step None, but the best step of this run is 2"):
        train(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize("overrides", [("data.validation=null",), ("training.validate_every_steps=0",)])
def test_early_stops_need_validations(tiny_run: TinyRun, overrides: tuple[str, ...]) -> None:
    settings: tuple[Any, ...] = (*WATCHED, "training.early_stop_patience=1", *overrides)
    with pytest.raises(
        ConfigError, match=r"early_stop_patience is 1; it needs data\.validation and training\.validate_every_steps"
    ):
        tiny_run.config(*settings)
