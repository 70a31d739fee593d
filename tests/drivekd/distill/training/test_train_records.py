"""A run reads the files that users have, and says what it left out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from record_files import QUESTIONS, SCENES, write_drivelm, write_pictures
from tiny_run import TinyRun

from drivekd.distill.training.train import read_training_samples
from drivekd.errors import DataError

pytestmark = pytest.mark.numerics


def sharegpt(**changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nIs it red?"}, {"from": "gpt", "value": "Yes."}]
    return {"image": "images/0.png", "conversations": turns, **changes}


def write(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return path


def test_records_without_a_question_type_are_what_the_configuration_says(tiny_run: TinyRun, tmp_path: Path) -> None:
    settings = [f"data.train=[{write(tmp_path / 'a.json', sharegpt())}]", f"data.image_root={tiny_run.folder}"]
    with pytest.raises(DataError, match="question_type: expected one of"):
        read_training_samples(tiny_run.config(*settings))
    (sample,) = read_training_samples(tiny_run.config(*settings, "data.question_type=planning")).labelled
    assert (sample.capability, sample.question, sample.answer) == ("planning", "Is it red?", "Yes.")


def test_faulty_records_stop_a_run_unless_it_leaves_them_out(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = sharegpt(
        question_type="planning", conversations=[*sharegpt()["conversations"][:1], {"from": "gpt", "value": "\ud83d"}]
    )
    path = write(tmp_path / "a.json", sharegpt(question_type="planning"), half)
    settings = [f"data.train=[{path}]", f"data.image_root={tiny_run.folder}"]
    with pytest.raises(DataError, match=r"record 2: conversations\[1\]\.value: holds \\ud83d"):
        read_training_samples(tiny_run.config(*settings))
    with caplog.at_level(logging.WARNING, "drivekd"):
        assert len(read_training_samples(tiny_run.config(*settings, "data.skip_faulty=true")).labelled) == 1
    assert "left out 1 of 2 records (1 lone surrogate)" in caplog.text


def test_drivelm_trains_as_it_comes(tiny_run: TinyRun, tmp_path: Path) -> None:
    write_pictures(tmp_path / "nuscenes")
    drivelm = write_drivelm(tmp_path / "drivelm.json")
    alone = ["data.unlabelled=[]", "training.unlabelled_batch_size=0", "data.validation=null"]
    samples = read_training_samples(tiny_run.config(f"data.train=[{drivelm}]", *alone)).labelled
    assert len(samples) == len(QUESTIONS) * sum(map(len, SCENES.values()))
