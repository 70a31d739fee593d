"""--fix writes what is sound or can be mended, leaves out the rest and counts it; what it wrote is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_fixtures import Run
from PIL import Image

from drivekd.data.checks.validate import validate_file
from drivekd.data.readers import read_samples


def record(question: str, answer: str | None = "Yes.", image: str = "good.png", **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages[: 1 if answer is None else 2], "images": [image], "question_type": "planning", **changes}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture", encoding="utf-8")
    records = [
        record("<image>  Is <c1,CAM_BACK,800.0,450.0> near?  ", " Yes. ", own_key=1, meta={"ego_speed_mps": 3}),
        record("<image>Is <c1,CAM_BACK,800.0,450.0> near?"),  # a repeat
        record("<image>Is it free?", "Yes.", "bad.png"),
        record("<image>Is it free?", "At <c1,CAM_BACK,1"),
        record("<image>Is it free?", None),
        record("Explain this<image>", "A road."),
        17,
        record("<image>Is it free?", "No."),
        record("<image>Is it free?", "No."),  # another
    ]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_what_is_sound_is_written_and_the_rest_is_counted(file: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "fixed.json"
    code, printed, _ = run("data", "validate", str(file), "--fix", str(out), "--json")
    assert code == 1, "the file that was validated is not sound"
    assert json.loads(printed)["fixed"] == {
        "questions written": "3",
        "repeats taken out": "2",
        "records left out for a problem": "3",
        "questions left out for a picture": "1",
    }
    samples = read_samples(out)
    assert [(sample.question, sample.answer) for sample in samples] == [
        ("Is <c1,CAM_BACK,0.5000,0.5000> near?", "Yes."),
        ("Explain this", "A road."),
        ("Is it free?", "No."),
    ]
    report = validate_file(out)
    assert (report.problems, report.warnings) == ((), ())
    first = json.loads(out.read_text(encoding="utf-8"))[0]
    assert (first["own_key"], first["meta"]["ego_speed_mps"]) == (1, 3)


def test_a_sound_file_exits_0_and_nothing_is_written_over(file: Path, run: Run, tmp_path: Path) -> None:
    assert run("data", "validate", str(file), "--fix", str(tmp_path / "fixed.json"))[0] == 1
    assert run("data", "validate", str(tmp_path / "fixed.json"))[0] == 0
    code, _, err = run("data", "validate", str(file), "--fix", str(file))
    assert (code, "is there already" in err) == (2, True)


def test_a_file_that_breaks_off_is_not_mended(file: Path, run: Run, tmp_path: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    code, _, err = run("data", "validate", str(file), "--fix", str(tmp_path / "fixed.json"))
    assert (code, "cannot be read to its end" in err) == (1, True)
    assert not (tmp_path / "fixed.json").exists()


@pytest.mark.parametrize("kind", ["essay", ""])
def test_a_capability_that_is_none_is_asking_wrongly(file: Path, run: Run, kind: str) -> None:
    assert run("data", "validate", str(file), "--capability", kind)[0] == 2
