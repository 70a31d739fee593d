"""A training run survives what happens to training runs: kills, Ctrl-C, full disks, damage, wrong resumes.

"Bit-equal" is always against one uninterrupted run of the same configuration on one CPU thread.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_run import NO_TEACHERS, TinyRun
from transformers import InternVLForConditionalGeneration

from drivekd.config import RunConfig, load_config
from drivekd.data.batch import Batch
from drivekd.data.sample import CAPABILITIES
from drivekd.digests import file_digest
from drivekd.distill import checkpoint
from drivekd.distill.block_store import BlockStore
from drivekd.distill.checkpoint import newest_checkpoint
from drivekd.distill.maps import Maps
from drivekd.distill.plan import dry_run
from drivekd.distill.run import train
from drivekd.distill.teachers import Teacher
from drivekd.distill.trainer import Trainer
from drivekd.errors import CheckpointError, ConfigError, DrivekdError, TrainingError, UsageError
from drivekd.log import MetricsFile, logger, read_metrics
from drivekd.models.internvl import load_model
from drivekd.processor import load_processor
from drivekd.run_directory import versions

STEPS = 12
# Whatever a resume must repeat is on: own anchors (stage 2 then settles conflicts in a random order), packs, dynamic weights
LENGTH = (
    *(f"training.steps={STEPS}", "training.batch_size=3", "training.micro_batch_size=2", "training.packing=frame"),
    *("projection.anchor=own", "signals.weighting=dynamic", "signals.dynamic.learning_rate=0.01"),
    *(f"signals.{name}.weight=20" for name in CAPABILITIES),
)


def overrides(out: Path) -> tuple[str, ...]:
    """Of a run in `out`; its teachers' cache lies beside it."""
    return (*LENGTH, f"cache.directory={out.parent / 'cache'}")


def configured(tiny_run: TinyRun, out: Path, *more: str) -> RunConfig:
    return tiny_run.config(*overrides(out), *more)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests copy it before they break it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(configured(tiny_run, out), out)
    return out


@pytest.fixture
def broken(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of the run and its cache, as if it had stopped before final/."""
    out = tmp_path / "run"
    shutil.copytree(uninterrupted.parent, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(out / "final")
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def steps_of(out: Path) -> list[int]:
    return [record["step"] for record in read_metrics(out / "metrics.jsonl")]


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a / "final" / "model.safetensors"), load_file(b / "final" / "model.safetensors")
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def timeless_records(out: Path) -> list[dict[str, Any]]:
    records = read_metrics(out / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in ("seconds", "tokens_per_s")} for record in records]


def assert_same_run(found: Path, expected: Path) -> None:
    """Equal to the bit: final weights, optimizer state, and every number of every step but its time."""
    assert same_weights(found, expected)
    moments = [load_file(run / "checkpoints" / f"step-{STEPS}" / "optimizer.safetensors") for run in (found, expected)]
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[1])
    assert timeless_records(found) == timeless_records(expected)
    assert leftovers(found) == []


# --- a finished run -------------------------------------------------------------------------------------------------


def test_the_run_directory_holds_everything(tiny_run: TinyRun, uninterrupted: Path) -> None:
    assert names(uninterrupted) == ["checkpoints", "config.yaml", "final", "metrics.jsonl", "tensorboard", "versions.json"]
    assert load_config(uninterrupted / "config.yaml") == configured(tiny_run, uninterrupted)
    assert json.loads((uninterrupted / "versions.json").read_text()) == versions()
    assert any((uninterrupted / "tensorboard").glob("events.*"))
    assert names(uninterrupted / "checkpoints") == ["step-10", "step-12"]  # keep_checkpoints = 2
    assert leftovers(uninterrupted) == []


def test_metrics_have_one_full_record_a_step(uninterrupted: Path) -> None:
    records = read_metrics(uninterrupted / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    terms = {*CAPABILITIES, *(f"ce_{name}" for name in CAPABILITIES)}
    assert {name for record in records for name in record["loss"]} == terms
    for record in records:
        assert set(record["gradient_norm"]) == set(record["loss"])
        assert set(record["weight"]) == {"ce", *CAPABILITIES}
        assert {"update_norm", "conflict_cosine", "learning_rate", "tokens", "tokens_per_s", "seconds"} <= set(record)
    assert len({record["weight"]["ce"] for record in records}) == STEPS  # dynamic
    assert sum(record["stage_2_fired"] for record in records) > 0


def scalars(out: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_tensorboard_shows_what_metrics_say(uninterrupted: Path) -> None:
    found = scalars(uninterrupted, "update_norm")
    records = read_metrics(uninterrupted / "metrics.jsonl")
    assert [step for step, _ in found] == [record["step"] for record in records]
    expected = [record["update_norm"] for record in records]
    assert [value for _, value in found] == pytest.approx(expected, rel=1e-6)  # events are fp32


def test_final_is_the_last_checkpoint_and_others_read_it(tiny_run: TinyRun, uninterrupted: Path) -> None:
    final = uninterrupted / "final"
    theirs = InternVLForConditionalGeneration.from_pretrained(final).state_dict()
    last = load_model(uninterrupted / "checkpoints" / f"step-{STEPS}").state_dict()
    assert set(theirs) == set(last)
    assert all(torch.equal(theirs[name], value) for name, value in last.items())
    ours, students = load_processor(final), load_processor(tiny_run.student)
    assert (ours.chat, ours.images) == (students.chat, students.images)
    assert set(json.loads((final / "prompts.json").read_text())["prompts"]) == set(CAPABILITIES)
    assert load_config(final / "config.yaml") == load_config(uninterrupted / "config.yaml")


def test_a_run_can_start_from_another_runs_final(tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path) -> None:
    config = tiny_run.config(f"student.checkpoint={uninterrupted / 'final'}", "training.steps=1", *NO_TEACHERS)
    summary = train(config, tmp_path / "next")
    assert summary.final == tmp_path / "next" / "final"
    assert (summary.steps, set(summary.loss)) == (1, {"ce"})
    assert summary.validation_loss is not None
    assert names(tmp_path / "next" / "final") == names(uninterrupted / "final")


def test_a_dry_run_measures_and_writes_nothing(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = dict(dry_run(tiny_run.config(*LENGTH)).rows)
    assert rows["labelled samples"] == "18"
    assert rows["unlabelled samples"] == "18"
    assert names(tmp_path) == []


# --- kill -9 and Ctrl-C ---------------------------------------------------------------------------------------------


def start_process(tiny_run: TinyRun, out: Path) -> subprocess.Popen[str]:
    settings = [argument for override in overrides(out) for argument in ("--set", override)]
    command = [sys.executable, "-m", "drivekd.cli", "train", str(tiny_run.yaml), *settings, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Return as soon as metrics.jsonl shows the step."""
    deadline_s = time.monotonic() + 240  # a loaded machine; nothing is measured
    path = out / "metrics.jsonl"
    while time.monotonic() < deadline_s and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"no step {step} in {path}; exit code {process.poll()}, stderr {process.communicate()[1]}")


@pytest.mark.parametrize("moment", [0, 1, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 3, 4))])
def test_kill_9_at_any_moment_and_resume_is_bit_equal(
    tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, moment: int
) -> None:
    chance = random.SystemRandom()
    step = chance.randint(3, 8)  # the first checkpoint is at 2
    process = start_process(tiny_run, tmp_path / "run")
    try:
        wait_for_step(process, tmp_path / "run", step)
        time.sleep(chance.uniform(0, 0.2))  # a step takes about so long: anywhere in a step, a checkpoint, a flush of the cache
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL, f"killed at step {step}"
    assert not (tmp_path / "run" / "final").exists()
    train(configured(tiny_run, tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_ctrl_c_saves_says_so_and_resumes_bit_equal(tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_process(tiny_run, out)
    try:
        wait_for_step(process, out, 3)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    stopped_at = steps_of(out)[-1]
    assert process.returncode == 1
    assert stdout == ""
    assert stderr.splitlines()[-1] == (
        f"error: stopped by SIGINT after step {stopped_at} of {STEPS}; everything is saved, continue with --resume --out {out}"
    )
    assert "Traceback" not in stderr
    assert stopped_at < STEPS
    found = newest_checkpoint(out / "checkpoints")
    assert found[1].step == stopped_at
    train(configured(tiny_run, out), out, resume=True)
    assert same_weights(out, uninterrupted)
    assert steps_of(out) == list(range(1, STEPS + 1))


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
    from safetensors.torch import save_file

    newest = broken / "checkpoints" / f"step-{STEPS}"
    tensors = load_file(newest / "optimizer.safetensors")
    save_file({name: value for name, value in tensors.items() if "layers.1" not in name}, newest / "optimizer.safetensors")
    state = json.loads((newest / "training_state.json").read_text())
    state["files"]["optimizer.safetensors"] = file_digest(newest / "optimizer.safetensors")
    (newest / "training_state.json").write_text(json.dumps(state))
    train(configured(tiny_run, broken), broken, resume=True)


# --- full disks -----------------------------------------------------------------------------------------------------

FULL = {
    "OSError": OSError(errno.ENOSPC, "No space left on device"),
    "SafetensorError": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_disk_that_fills_while_saving_is_said_and_costs_nothing(
    tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls = 0

    def save_file(tensors: dict[str, Any], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            path.write_bytes(b"half")
            raise error
        real(tensors, path)

    real = checkpoint.save_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        with pytest.raises(DrivekdError, match=r"step-4: no space left on the disk; nothing was left half-written"):
            train(configured(tiny_run, tmp_path / "run"), tmp_path / "run")
    assert names(tmp_path / "run" / "checkpoints") == ["step-2"]
    assert leftovers(tmp_path / "run") == []
    train(configured(tiny_run, tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; tests size it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_really_full(tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, small_disk: Path) -> None:
    config = configured(tiny_run, tmp_path / "run")  # the cache, which leaves a gigabyte free, is on another disk
    one = sum(path.stat().st_size for path in (uninterrupted / "checkpoints" / "step-10").iterdir())
    subprocess.run(["mount", "-o", f"remount,size={one * 3 // 2}", small_disk], check=True)
    with pytest.raises(DrivekdError, match=r"step-4: no space left on the disk"):
        train(config, small_disk / "run")
    assert names(small_disk / "run" / "checkpoints") == ["step-2"]
    assert leftovers(small_disk) == []
    subprocess.run(["mount", "-o", f"remount,size={one * 9}", small_disk], check=True)
    train(config, small_disk / "run", resume=True)
    assert_same_run(small_disk / "run", uninterrupted)


def test_a_disk_that_fills_under_the_metrics_is_said_and_costs_nothing(
    tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: MetricsFile, record: dict[str, Any]) -> None:
        if record["step"] == 5:
            self._file.write('{"step": 5, "lo')  # what still had room
            raise FULL["OSError"]
        real(self, record)

    real = MetricsFile.write
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", write)
        with pytest.raises(TrainingError, match=r"run: no space left on the disk for metrics and logs; free space and --resume"):
            train(configured(tiny_run, tmp_path / "run"), tmp_path / "run")
    train(configured(tiny_run, tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_disk_that_fills_under_the_cache_costs_nothing(
    tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is written before the cache is flushed."""

    def flush(self: BlockStore) -> None:
        raise TrainingError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(BlockStore, "flush", flush)
        with pytest.raises(TrainingError, match="the disk is full"):
            train(configured(tiny_run, tmp_path / "run"), tmp_path / "run")
    assert names(tmp_path / "run" / "checkpoints") == ["step-2"]
    assert train(configured(tiny_run, tmp_path / "run"), tmp_path / "run", resume=True).steps == STEPS


# --- the cache ------------------------------------------------------------------------------------------------------


def shards(out: Path) -> list[Path]:
    return sorted((out.parent / "cache").rglob("shard-*"))


def test_what_was_cached_survives_an_error(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = configured(tiny_run, out, "optimizer.learning_rate=1e30", "training.checkpoint_every_steps=99")
    with pytest.raises(TrainingError):
        train(config, out)
    assert shards(out)


@pytest.fixture
def questions_to_teachers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of samples whenever a teacher runs."""
    asked: list[int] = []
    real = Teacher.maps

    def maps(self: Teacher, batch: Batch, signals: Any) -> Maps:
        asked.append(len(batch.samples))
        return real(self, batch, signals)

    monkeypatch.setattr(Teacher, "maps", maps)
    return asked


def test_a_cache_filled_first_leaves_nothing_to_ask(
    tiny_run: TinyRun, tmp_path: Path, questions_to_teachers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    config = configured(tiny_run, out, f"teachers={{planning: {tiny_run.teacher}}}", "cache.fill_first=true", "training.steps=3")
    real = Trainer.fill_cache

    def interrupted(self: Trainer) -> None:
        real(self)
        raise KeyboardInterrupt  # what was asked is kept

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fill_cache", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, out)
    assert not out.exists()  # nothing to resume
    assert shards(out)
    assert sum(questions_to_teachers) > 0
    questions_to_teachers.clear()
    assert train(config, out).steps == 3
    assert questions_to_teachers == []


# --- out of memory --------------------------------------------------------------------------------------------------

STARVED = """
import resource, sys
from pathlib import Path
import torch
from drivekd.cli import main
from drivekd.distill.objectives import Objectives

honest, calls = Objectives.losses, 0

def hungry(self, batch, size):
    if size.step == 4:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
        torch.ones(1 << 26)  # 256 MB, as a long pack would want
    return honest(self, batch, size)

Objectives.losses = hungry
main()
"""


def test_out_of_memory_says_what_to_lower_and_the_advice_works(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A real limit, torch's real error, and the very command that the message gives."""
    out = tmp_path / "run"
    settings = [argument for override in overrides(out) for argument in ("--set", override)]
    command = [sys.executable, "-c", STARVED, "train", str(tiny_run.yaml), *settings, "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    said = result.stderr.splitlines()[-1]
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert re.match(r"error: out of memory on cpu: [\d,]+ of [\d,]+ MB used at the peak\. ", said), said
    knobs = (
        "training.micro_batch_size=1, training.max_pack_tokens=2048, student.gradient_checkpointing=true, "
        "teachers.precision=bf16, student.lora={rank: 16}"
    )
    assert (
        f"What helps, cheapest first: {knobs}. The last checkpoint is {out / 'checkpoints' / 'step-4'}; continue with: " in said
    )
    advised = re.search(r"continue with: drivekd (.*) \(.*can't allocate memory", said)
    assert advised is not None, said
    again = subprocess.run([sys.executable, "-m", "drivekd.cli", *advised[1].split()], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert steps_of(out) == list(range(1, STEPS + 1))


# --- NaN ------------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_stops_and_names_the_term(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = configured(tiny_run, tmp_path / "run", "optimizer.learning_rate=1e30", "training.checkpoint_every_steps=1")
    what = r"step \d+: the loss term '\w+' is (nan|inf); .*It came up in a micro-batch with .*train\.json, record \d+"
    with pytest.raises(TrainingError, match=rf"{what}.*learning_rate.* The last checkpoint is .*checkpoints/step-\d+$"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path / "model.safetensors").values())
