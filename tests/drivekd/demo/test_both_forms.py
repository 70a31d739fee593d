"""Both forms are scored on the same questions: a bundle that knows all, one that knows one form, one that is mute."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from drivekd.answered import Given
from drivekd.demo import both_forms as module
from drivekd.demo.both_forms import both_forms
from drivekd.errors import DataError
from drivekd.runtime import Answer
from drivekd.sample import CAPABILITIES, Sample
from drivekd.world import WorldSettings, build_world

FRAMES = 6
NULLS: dict[str, dict[str, Any]] = {
    "perception": {"objects": None, "complete": True},
    "reasoning": {"objects": None, "complete": True},
    "planning": {"actions": None, "reason": None, "probability": None, "complete": True},
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "world"
    build_world(out, WorldSettings(train_frames=FRAMES, labelled_frames=FRAMES, validation_frames=0, test_frames=0, workers=1))
    return out / "train.json"


class FakeBundle:
    """Answers in place of a bundle, free and structured. It sees frames in the order of the file."""

    name, digest = "fake", "sha256:0"
    variables: Mapping[str, object] = {"ego_speed_mps": 8}

    def __init__(self, records: Path, free: Callable[[Sample], str], structured: Callable[[str, Any], Any]) -> None:
        found = json.loads(records.read_text(encoding="utf-8"))
        self._free, self._structured = free, structured
        self._frames = [
            {one["question_type"]: one for one in found if one["meta"]["scene"] == scene and "structured" in one}
            for scene in dict.fromkeys(one["meta"]["scene"] for one in found)
        ]

    def __enter__(self) -> FakeBundle:
        return self

    def __exit__(self, *_: object) -> None: ...

    def answers(self, samples: list[Sample]) -> list[Given]:
        return [Given(self._free(sample)) for sample in samples]

    def answer(self, images: Mapping[str, Any], *, variables: Mapping[str, object], structured: bool) -> dict[str, Answer]:
        frame = self._frames.pop(0)
        assert structured
        assert list(images) == ["CAM_FRONT"]
        assert variables == {"ego_speed_mps": frame["planning"]["meta"]["ego_speed_mps"]}
        answers = {name: self._structured(name, record["structured"]) for name, record in frame.items()}
        return {name: Answer(name, "", structured=found, valid=found != NULLS[name]) for name, found in answers.items()}


@pytest.fixture
def asked(records: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., module.BothForms]:
    def ask(free: Callable[[Sample], str], structured: Callable[[str, Any], Any]) -> module.BothForms:
        fake = FakeBundle(records, free, structured)
        monkeypatch.setattr(module, "open_answerer", lambda path: fake)
        monkeypatch.setattr(module, "load_bundle", lambda path, expect_digest: fake)
        return both_forms(Path("bundle"), records)

    return ask


def right(sample: Sample) -> str:
    return sample.answer or ""


def test_who_knows_all_is_right_in_both_forms(asked: Callable[..., module.BothForms]) -> None:
    found = asked(right, lambda name, answer: answer)
    for report in found.reports.values():
        assert [report.row(name).accuracy for name in CAPABILITIES] == [1, 1, 1]
        assert [report.row(name).n for name in CAPABILITIES] == [3 * FRAMES, FRAMES, FRAMES]
    assert found.differences == dict.fromkeys(CAPABILITIES, (0.0, (0.0, 0.0)))
    rows = {row[0]: row[1:] for row in found.rows()}
    assert rows["structured answers not valid"] == ["0 of 6"] * 3


def test_a_mute_bundle_states_nothing(asked: Callable[..., module.BothForms]) -> None:
    found = asked(right, lambda name, answer: NULLS[name])
    structured = found.reports["structured"]
    assert [structured.row(name).accuracy for name in CAPABILITIES] == [0, 0, 0]
    assert structured.row("perception").unparsed == 3 * FRAMES
    assert found.differences == dict.fromkeys(CAPABILITIES, (-1.0, (-1.0, -1.0)))
    assert {row[0]: row[1:] for row in found.rows()}["structured answers not valid"] == ["6 of 6"] * 3


def test_differences_are_paired(asked: Callable[..., module.BothForms]) -> None:
    stop = {"actions": ["stop"], "reason": None, "probability": None, "complete": True}
    found = asked(lambda sample: "C.", lambda name, answer: stop if name == "planning" else answer)
    accuracy = [report.row("planning").accuracy for report in found.reports.values()]
    assert accuracy[0] == accuracy[1] < 1
    assert found.differences["planning"] == (0.0, (0.0, 0.0)), "right and wrong on the very same frames"
    assert found.differences["perception"][0] > 0


def test_another_file_is_refused(records: Path, tmp_path: Path) -> None:
    found = [{**one, "meta": {**one["meta"], "topic": "mine"}} for one in json.loads(records.read_text(encoding="utf-8"))]
    (tmp_path / "other.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(DataError, match=r"no question of the built-in world"):
        both_forms(Path("bundle"), tmp_path / "other.json")
