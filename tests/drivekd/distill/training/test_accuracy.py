"""Validation on what is answered: the questions, their scores, the best step, and that it is what `drivekd eval` will say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import NO_TEACHERS, TinyRun, start_trainer

from drivekd.answered import Given
from drivekd.distill.training import accuracy
from drivekd.distill.training.accuracy import accuracy_samples, scores
from drivekd.distill.training.checkpoint import Validations, newest_checkpoint
from drivekd.distill.training.train import train
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import ConfigError, DataError
from drivekd.evaluate.answering import AnswererSettings, open_answerer
from drivekd.log import read_metrics
from drivekd.sample import CAPABILITIES, AnswerForm, Capability, Sample

pytestmark = pytest.mark.numerics

ON_ACCURACY = (*NO_TEACHERS, "training.validate_on=accuracy", "prompts.max_new_tokens=6")


def sample(number: int, answer: str | None = "Yes.", form: AnswerForm = "yesno", capability: Capability = "planning") -> Sample:
    return Sample(f"f, record {number}", capability, f"Is it {number}?", answer, (Path("x.png"),), form)


def test_as_many_of_each_capability_as_there_are() -> None:
    samples = [sample(n, capability=CAPABILITIES[0 if n < 80 else 1 if n < 95 else 2]) for n in range(100)]
    chosen = accuracy_samples(samples, 30, seed=0)
    assert Counter(one.capability for one in chosen) == {"perception": 13, "reasoning": 12, "planning": 5}
    assert chosen == accuracy_samples(samples, 30, seed=0) == sorted(chosen, key=samples.index), "in the file's order"
    assert chosen != accuracy_samples(samples, 30, seed=1)
    assert accuracy_samples(samples, 1000, seed=0) == samples


def test_what_nothing_can_be_counted_against_is_not_asked() -> None:
    none = [sample(0, "Perhaps."), sample(1, None), sample(2, "Brake.", "open")]
    with_tag = sample(3, "There: <c1,CAM_FRONT,0.5,0.5>.", "open")
    assert accuracy_samples([*none, with_tag], 9, seed=0) == [with_tag]
    with pytest.raises(DataError, match="none of 3 records is a choice or yes/no question, or has tags in its answer"):
        accuracy_samples(none, 9, seed=0)


def test_scores_by_hand() -> None:
    choice = replace(sample(0, "B. Right.", "choice"), question="Which way? Options: A. Left. B. Right.")
    tags = sample(1, "<c1,CAM_FRONT,0.5,0.5> <c2,CAM_BACK,0.1,0.1>", "open")
    samples = [choice, choice, choice, sample(2), tags]
    given = [Given(text) for text in ("B. Right.", "A. Left.", "hm", "Yes.", "<c1,CAM_FRONT,0.5,0.5>")]
    assert list(scores(samples, given)) == [1, 0, 0, 1, pytest.approx(2 / 3)]


def test_the_best_is_the_highest_and_of_equals_the_one_with_the_lower_loss() -> None:
    seen, bests = Validations(), []
    for step, (loss, share) in enumerate([(3.0, 0.5), (2.0, 0.4), (2.5, 0.5), (9.0, 0.6), (9.0, 0.6)], start=1):
        seen = seen.after(step, loss, share)
        bests.append((seen.best_step, seen.best, seen.best_accuracy, seen.without_gain))
    assert bests == [(1, 3.0, 0.5, 0), (1, 3.0, 0.5, 1), (3, 2.5, 0.5, 0), (4, 9.0, 0.6, 0), (4, 9.0, 0.6, 1)]
    assert (seen.last, seen.last_accuracy) == (9.0, 0.6)


def test_it_asks_the_student_as_eval_will_ask_its_checkpoint(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[str, str] = {}

    def noted(samples: Sequence[Sample], given: Sequence[Given]) -> list[float]:
        heard.update({one.source: answer.text for one, answer in zip(samples, given, strict=True)})
        return [1.0] * len(samples)

    trainer = start_trainer(tiny_run, *ON_ACCURACY)
    trainer.step()
    was_training = trainer.student.training
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "scores", noted)
        assert trainer.validation_accuracy() == 1.0
    assert trainer.student.training == was_training
    trainer.save(tmp_path, {}, Validations())
    final, _ = newest_checkpoint(tmp_path)
    asked = trainer.accuracy_samples
    given = open_answerer(final, AnswererSettings(device="cpu")).answers(asked)
    assert heard == {one.source: answer.text for one, answer in zip(asked, given, strict=True)}
    assert len(set(heard.values())) > 1, "answers that are all alike would say nothing"
    assert {len(one.images) for one in asked} == {1, 2}
    trainer.step()


FOUND = ((3.0, 0.5), (2.0, 0.4), (2.5, 0.5), (4.0, 0.5), (5.0, 0.9))
WATCHED = ("training.steps=5", "training.validate_every_steps=1", "training.checkpoint_every_steps=3", "training.batch_size=2")


def test_best_and_early_stops_follow_accuracy_and_resuming_keeps_it(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "validate", lambda self: FOUND[self.steps_done - 1][0])
    monkeypatch.setattr(Trainer, "validation_accuracy", lambda self: FOUND[self.steps_done - 1][1])
    config = tiny_run.config(*ON_ACCURACY, *WATCHED)
    summary = train(config, tmp_path / "run")
    assert (summary.validation_loss, summary.validation_accuracy) == (5.0, 0.9)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["validation_accuracy"] for record in records] == [0.5, 0.4, 0.5, 0.5, 0.9]
    assert [record["best_validation_step"] for record in records] == [1, 1, 3, 3, 5]
    best = json.loads((tmp_path / "run" / "best" / "validation.json").read_text(encoding="utf-8"))
    assert best == {"step": 5, "validation_loss": 5.0, "validation_accuracy": 0.9}
    assert newest_checkpoint(tmp_path / "run" / "checkpoints")[1].validations == Validations(5.0, 5.0, 5, 0, 0.9, 0.9)

    stops = tiny_run.config(*ON_ACCURACY, *WATCHED, "training.early_stop_patience=1")
    early = train(stops, tmp_path / "early")
    assert (early.steps, early.validation_accuracy) == (2, 0.5)
    assert train(stops, tmp_path / "early", resume=True).steps == 2


def test_without_a_file_to_ask_from_it_is_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match=r"training\.validate_on is accuracy, but data\.validation names no file"):
        tiny_run.config(*ON_ACCURACY, "data.validation=null")


def test_a_loss_run_asks_nothing(tiny_run: TinyRun) -> None:
    trainer = start_trainer(tiny_run, *NO_TEACHERS)
    assert trainer.validation_accuracy() is None and trainer.accuracy_samples == []
