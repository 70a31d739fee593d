"""A finished training run: what its directory holds, and who can go on from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import NO_TEACHERS, TinyRun
from train_cases import LENGTH, STEPS, configured, leftovers, names, scalars
from transformers import InternVLForConditionalGeneration

from drivekd.config import load_config
from drivekd.contract import read_contract
from drivekd.distill.dry_run.plan import dry_run
from drivekd.distill.training.train import train
from drivekd.files import versions
from drivekd.hf_checkpoint import load_processor
from drivekd.log import read_metrics
from drivekd.models.internvl import load_model
from drivekd.sample import CAPABILITIES

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]


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
    contract = read_contract(final)
    assert contract is not None
    assert set(contract.prompts) == set(contract.max_new_tokens) == set(CAPABILITIES)
    assert contract == read_contract(uninterrupted / "checkpoints" / f"step-{STEPS}")
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
    assert rows["cameras"].startswith("the records name none") and rows["answers"].startswith("perception 16, ")
    assert rows["unlabelled samples"] == "18"
    assert names(tmp_path) == []
