"""Structured answers of a session and all behind it: of nulls alone they are marked; JSON is asked for as training did."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_bundle import recompute

from drivekd.runtime import load_bundle, read_bundle
from drivekd.runtime.answers.answer import says_nothing
from drivekd.runtime.answers.schemas import SCHEMAS_FILE, schemas_to_bytes
from drivekd.runtime.resilience.worker import WorkerSession
from drivekd.runtime.run import run_command

IMAGES = {"CAM_FRONT": np.full((56, 56, 3), 90, np.uint8)}
NULLS = {"camera": None, "position": None, "category": None, "status": None}


@pytest.mark.parametrize(
    ("structured", "nothing"),
    [
        ({"objects": None, "complete": True}, True),
        ({"objects": [], "complete": True}, False),  # there are none: that is said
        ({"objects": [NULLS, NULLS], "complete": True}, True),
        ({"objects": [NULLS, {**NULLS, "category": "van"}], "complete": True}, False),
        ({"objects": [{**NULLS, "status": " \n"}], "complete": True}, True),
        ({"actions": None, "reason": "", "probability": None, "complete": True}, True),
        ({"actions": None, "reason": None, "probability": 0.0, "complete": True}, False),
        ({"flag": False, "complete": True}, False),
        ({"complete": True}, True),
    ],
)
def test_what_says_nothing(structured: dict[str, Any], nothing: bool) -> None:
    assert says_nothing(structured) == nothing


@pytest.fixture(scope="module")
def mute_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its schemas leave null and "" alone: the model ends by itself, whatever it wanted to say."""
    folder = tmp_path_factory.mktemp("mute") / "bundle"
    shutil.copytree(bundle, folder)
    manifest = read_bundle(bundle).manifest
    text = {"type": ["string", "null"], "maxLength": 0}
    properties = {"reason": text, "complete": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    (folder / SCHEMAS_FILE).write_bytes(schemas_to_bytes(dict.fromkeys(manifest.prompts, schema)))
    recompute(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def worker(mute_bundle: Path) -> Iterator[WorkerSession]:
    with WorkerSession(mute_bundle, threads=1, gate=False) as worker:
        yield worker


@pytest.mark.numerics
@pytest.mark.usefixtures("one_thread")
def test_a_session_marks_an_answer_of_nulls_and_counts_it(mute_bundle: Path) -> None:
    with load_bundle(mute_bundle, threads=1, gate=False) as session:
        answers = session.answer(IMAGES, structured=True)
        for answer in answers.values():
            assert answer.structured is not None
            assert not answer.structured["reason"]
            assert (answer.finish_reason, answer.complete, answer.valid) == ("stop", True, False)
        assert session.health().invalid == len(answers)


@pytest.mark.numerics
def test_a_worker_marks_it_as_well(worker: WorkerSession) -> None:
    answers = worker.answer(IMAGES, structured=True)
    assert {(answer.finish_reason, answer.valid) for answer in answers.values()} == {("stop", False)}


@pytest.mark.numerics
def test_run_says_so(mute_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(IMAGES["CAM_FRONT"]).save(tmp_path / "road.png")
    (report,) = run_command(mute_bundle, [str(tmp_path / "road.png")], structured=True)
    assert all(" (says nothing): {" in line for line in report.lines())
    found = json.loads(json.dumps(report.to_json()))["answers"]
    assert {answer["valid"] for answer in found.values()} == {False}


@pytest.mark.numerics
@pytest.mark.usefixtures("one_thread")
def test_a_bundle_that_learnt_json_is_asked_for_it_as_in_training(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    recompute(folder, dataclasses.replace(read_bundle(bundle).manifest, structured_instruction="\nAs JSON."))
    with load_bundle(folder, threads=1, gate=False) as session:
        asked: list[str] = []
        suffix = session.model.prompts.suffix
        monkeypatch.setattr(session.model.prompts, "suffix", lambda text: asked.append(text) or suffix(text))  # type: ignore[func-returns-value]
        session.answer(IMAGES, max_new_tokens=1)
        free = list(asked)
        session.answer(IMAGES, structured=True, max_new_tokens=1)
        assert asked[len(free) :] == [f"{text}\nAs JSON." for text in free]
