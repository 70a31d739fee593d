"""validate_file reports every fault of a file, not only the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from record_files import write_drivekd

from drivekd.data.checks.validate import validate_file


def record(image: str, question: str = "Is it wet?", answer: str | None = "No.", **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"<image>{question}"}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "images": [image], "question_type": "perception", **changes}


def write(folder: Path, *records: Any) -> Path:
    path = folder / "records.json"
    path.write_text(json.dumps(list(records)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:-900])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    return tmp_path


def test_a_sound_file_is_ok(folder: Path) -> None:
    report = validate_file(write(folder, record("good.jpg"), record("good.jpg", "What is it?", "A car.")))
    assert report.ok
    assert report.warnings == ()
    assert report.counts == {("perception", "yesno"): 1, ("perception", "open"): 1}
    assert dict(report.rows)["records"] == "2"
    assert dict(report.rows)["images"] == "1"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cut.jpg", "truncated"),
        ("empty.jpg", "image is empty (0 bytes)"),
        ("text.jpg", "not an image"),
        ("none.jpg", "No such file"),
    ],
)
def test_a_bad_image_is_decoded_and_named_with_its_first_record(image: str, message: str, folder: Path) -> None:
    path = write(folder, record("good.jpg"), record(image), record(image, "Is it dry?"))
    report = validate_file(path)
    assert not report.ok
    (problem,) = report.problems
    assert problem.startswith(f"{path}, record 2: images: {folder / image}: ")
    assert message in problem


def test_all_problems_are_collected(folder: Path) -> None:
    path = write(
        folder,
        record("good.jpg", question_type="essay", meta={"scene": 3}),
        record("good.jpg", answer=None),
        record("cut.jpg", "Where is <c1,CAM_FRONT,4.32,0.85>?", "At <c1,CAM_FRONT,0.4"),
        record("none.jpg"),
        17,
    )
    problems = "\n".join(validate_file(path).problems)
    for expected in (
        "record 1: question_type:",
        "record 1: meta.scene:",
        "record 2: messages: no assistant message",
        "record 3: question: malformed tag '<c1,CAM_FRONT,4.32,0.85>'",
        "record 3: answer: malformed tag '<c1,CAM_FRONT,0.4'",
        "record 3: images: ",
        "record 4: images: ",
        "record 5: expected an object",
    ):
        assert f"{path}, {expected}" in problems
    assert validate_file(path).records == 5


def test_unlabelled_records_are_sound_when_asked_for(folder: Path) -> None:
    path = write(folder, record("good.jpg", answer=None))
    assert validate_file(path, unlabelled=True).ok
    assert not validate_file(path).ok


def test_pixel_tags_of_a_pixel_file_are_sound(folder: Path) -> None:
    path = write(folder, record("good.jpg", "Is <c1,CAM_FRONT,714.3,503.6> red?"))
    report = validate_file(path)
    assert report.ok
    assert report.coordinates == "pixel"


def test_repeats_are_warnings(folder: Path) -> None:
    path = write(folder, record("good.jpg"), record("good.jpg"), record("good.jpg", answer="Yes."))
    report = validate_file(path)
    assert report.ok
    assert report.warnings == (
        f"{path}, record 2: duplicate of {path}, record 1",
        f"{path}, record 3: another answer than {path}, record 1",
    )


def test_an_unreadable_file_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.touch()
    assert validate_file(path).problems == (f"{path}: file is empty (0 bytes); expected JSON",)


def test_broken_tags_and_missing_pictures_of_a_published_file_are_found(tmp_path: Path) -> None:
    path = write_drivekd(tmp_path / "demo.json")
    report = validate_file(path)
    problems = "\n".join(report.problems)
    assert "record 3: answer: malformed tag '<c1,CAM_FRONT,4.30,0.85>'" in problems
    assert "record 2: answer: malformed tag '<c4,CAM_FRONT,0.8400,0.83'" in problems
    assert problems.count("No such file") == report.images == 27  # three records of one picture, four of six
    assert len(report.problems) == 29
