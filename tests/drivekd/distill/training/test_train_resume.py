"""`train --resume`: it goes on to the bit where a run stopped, and refuses another configuration and a damaged checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import NO_TEACHERS, TinyRun
from train_cases import STEPS, assert_same_run, configured, names, scalars

from drivekd.distill.training.train import train
from drivekd.errors import CheckpointError, ConfigError, UsageError
from drivekd.files import file_digest
from drivekd.log import logger

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]


# --- resuming -------------------------------------------------------------------------------------------------------


def test_metrics_are_cut_at_the_checkpoint_and_written_again(tiny_run: TinyRun, uninterrupted: Path, broken: Path) -> None:
    shutil.rmtree(broken / "checkpoints" / f"step-{STEPS}")
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # the line that the kill cut
    (broken / "checkpoints" / ".step-7.4711.tmp").mkdir()  # what a kill while saving leaves
    train(configured(tiny_run, broken), broken, resume=True)
    assert_same_run(broken, uninterrupted)
    assert names(broken / "checkpoints") == ["step-10", "step-12"]
    assert [step for step, _ in scalars(broken, "update_norm")] == list(range(1, STEPS + 1))


def test_resuming_a_finished_run_only_writes_final_again(tiny_run: TinyRun, uninterrupted: Path, broken: Path) -> None:
    summary = train(configured(tiny_run, broken), broken, resume=True)
    assert summary.steps == STEPS
    assert_same_run(broken, uninterrupted)


@pytest.mark.parametrize(
    "override",
    ["optimizer.learning_rate=1e-4", "seed=9", "training.batch_size=2", "signals.planning.weight=2", "teachers.planning=null"],
)
def test_another_configuration_is_refused_and_named(tiny_run: TinyRun, broken: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="was started with another") as caught:
        train(configured(tiny_run, broken, override), broken, resume=True)
    assert override.partition("=")[0].rpartition(".")[0] in str(caught.value)
    assert not (broken / "final").exists()


def test_how_often_to_save_may_change(tiny_run: TinyRun, broken: Path) -> None:
    config = configured(tiny_run, broken, "training.checkpoint_every_steps=5", "training.keep_checkpoints=9")
    assert train(config, broken, resume=True).steps == STEPS


def test_relative_overrides_can_be_resumed(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.yaml lies in the run directory; a path of --set does not start there."""
    monkeypatch.chdir(tiny_run.folder)
    overrides = ("student.checkpoint=student", "training.steps=2", *NO_TEACHERS)
    train(tiny_run.config(*overrides), tmp_path / "run")
    assert train(tiny_run.config(*overrides), tmp_path / "run", resume=True).steps == 2


def test_there_must_be_something_to_resume(tiny_run: TinyRun, broken: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run to continue"):
        train(tiny_run.config(), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    shutil.rmtree(broken / "checkpoints")
    with pytest.raises(CheckpointError, match="no complete checkpoint to resume from"):
        train(configured(tiny_run, broken), broken, resume=True)


def test_another_thread_count_is_warned_of(
    tiny_run: TinyRun, broken: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        train(configured(tiny_run, broken, "training.threads=2"), broken, resume=True)
    torch.set_num_threads(1)
    assert "ran on 1 CPU threads with torch" in caplog.text
    assert "training.threads=1" in caplog.text


def test_a_run_is_not_started_over_another(tiny_run: TinyRun, broken: Path) -> None:
    before = names(broken)
    with pytest.raises(UsageError, match="is not empty; give a new --out, or --resume"):
        train(configured(tiny_run, broken), broken)
    assert names(broken) == before


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "training_state.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_checkpoint_is_named(tiny_run: TinyRun, broken: Path, name: str, damage: str) -> None:
    path = broken / "checkpoints" / f"step-{STEPS}" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    changed = {"flipped": bytes(data), "cut": bytes(data[: len(data) // 2]), "missing": None}[damage]
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    with pytest.raises(CheckpointError) as caught:
        train(configured(tiny_run, broken), broken, resume=True)
    assert str(caught.value).startswith(f"{path}: ")
    assert f"remove {path.parent} to resume from the one before" in str(caught.value)


def test_the_advice_for_a_damaged_checkpoint_works(tiny_run: TinyRun, uninterrupted: Path, broken: Path) -> None:
    shutil.rmtree(broken / "checkpoints" / f"step-{STEPS}")
    train(configured(tiny_run, broken), broken, resume=True)
    assert_same_run(broken, uninterrupted)


def test_optimizer_state_of_another_student_is_refused(tiny_run: TinyRun, broken: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no optimizer state for .*layers"):
        _resume_with_foreign_optimizer(tiny_run, broken)


def _resume_with_foreign_optimizer(tiny_run: TinyRun, broken: Path) -> None:
    newest = broken / "checkpoints" / f"step-{STEPS}"
    tensors = load_file(newest / "optimizer.safetensors")
    save_file({name: value for name, value in tensors.items() if "layers.1" not in name}, newest / "optimizer.safetensors")
    state = json.loads((newest / "training_state.json").read_text())
    state["files"]["optimizer.safetensors"] = file_digest(newest / "optimizer.safetensors")
    (newest / "training_state.json").write_text(json.dumps(state))
    train(configured(tiny_run, broken), broken, resume=True)
