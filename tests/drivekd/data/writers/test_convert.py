"""DriveLM and DriveBench become Drive-KD records that read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from record_files import DRIVEBENCH, QUESTIONS, SCENES, write_drivebench, write_drivelm, write_pictures

from drivekd.data.readers import read_samples
from drivekd.data.writers.convert import convert_file
from drivekd.errors import DataError, UsageError
from drivekd.sample import CAMERAS

NAMES = {camera: f"samples/{camera}/log__{camera}__1.jpg" for camera in CAMERAS}


def pair(question: str, answer: str) -> dict[str, Any]:
    return {"Q": question, "A": answer, "C": None}


def drivelm(**changes: Any) -> dict[str, Any]:
    frame = {
        "QA": {
            "perception": [pair("Is <c1,CAM_BACK,800.0,450.0> behind <c2,CAM_FRONT,160.0,90.0>?", "Yes.")],
            "prediction": [
                pair("What is it? Options: A. Car. B. Bus.", "B"),
                pair("Cut <c9,CAM_BACK,1", "<c1,CAM_BACK,4000.0,2>"),
            ],
            "planning": [pair("What is safe?", "Brake for <c1,CAM_BACK,800.0,450.0>.")],
            "behavior": [pair("Predict the behavior.", "")],
        },
        "image_paths": {camera: f"../nuscenes/{name}" for camera, name in NAMES.items()},
        **changes,
    }
    return {"scene-a": {"scene_description": "x", "key_frames": {"frame-a": frame}}}


def drivebench(**changes: Any) -> dict[str, Any]:
    return {
        "scene_token": "scene-b",
        "frame_token": "frame-b",
        "question_type": "behavior",
        "question": "Where does <c1,CAM_BACK_LEFT,0.5073,0.5778> go? Options: A. On. B. Back.",
        "answer": "A",
        "tag": [0],
        "image_path": {"CAM_BACK_LEFT": f"data/nuscenes/{NAMES['CAM_BACK_LEFT']}"},
        **changes,
    }


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def make_images(root: Path) -> None:
    for name in NAMES.values():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_drivelm_reads_back(tmp_path: Path) -> None:
    make_images(tmp_path / "nuscenes")
    out = tmp_path / "converted" / "out.json"
    report = convert_file(write(tmp_path / "in.json", drivelm()), out)
    assert report.format == "drivelm"
    assert report.by_question_type == {"perception": 1, "reasoning": 3, "planning": 1}
    assert report.by_topic == {"perception": 1, "prediction": 2, "planning": 1, "behavior": 1}
    assert (report.records, report.unlabelled, report.malformed_tags, report.missing_images) == (5, 1, 2, 0)
    assert report.coordinates == "pixel"

    samples = read_samples(out, unlabelled=True)
    asked, choice, cut, plan, behavior = samples
    assert asked.question == "Is <c1,CAM_BACK,0.5000,0.5000> behind <c2,CAM_FRONT,0.1000,0.1000>?"
    assert [image.parent.name for image in asked.images] == ["CAM_FRONT", "CAM_BACK"]
    assert all(image.is_file() for sample in samples for image in sample.images)
    assert (choice.answer_form, choice.topic, choice.capability, choice.scene) == ("choice", "prediction", "reasoning", "scene-a")
    assert [image.parent.name for image in choice.images] == list(CAMERAS)
    assert (cut.question, cut.answer) == ("Cut <c9,CAM_BACK,1", "<c1,CAM_BACK,4000.0,2>")
    assert plan.answer == "Brake for <c1,CAM_BACK,0.5000,0.5000>."
    assert [image.parent.name for image in plan.images] == list(CAMERAS), "the answer's tags must not choose the cameras"
    assert behavior.answer is None
    assert [message["role"] for message in json.loads(out.read_text())[-1]["messages"]] == ["user"]


def test_drivebench_reads_back(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    out = tmp_path / "images" / "out.json"
    report = convert_file(write(tmp_path / "in.json", [drivebench()]), out, image_root=tmp_path / "images")
    assert (report.format, report.coordinates, report.by_question_type) == ("drivebench", "normalized", {"reasoning": 1})
    (sample,) = read_samples(out)
    assert sample.question == drivebench()["question"]
    assert sample.images[0].is_file()
    assert json.loads(out.read_text())[0]["images"] == [NAMES["CAM_BACK_LEFT"]], "below the file: written relative to it"
    assert json.loads(out.read_text())[0]["meta"]["frame"] == "frame-b"


def test_missing_images_are_counted_and_keep_their_written_path(tmp_path: Path) -> None:
    report = convert_file(write(tmp_path / "in.json", [drivebench()]), tmp_path / "out.json")
    assert report.missing_images == 1
    assert read_samples(tmp_path / "out.json")[0].images[0] == tmp_path / f"data/nuscenes/{NAMES['CAM_BACK_LEFT']}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([drivebench(), drivebench(question_type="essay")], "record 2: question_type: expected one of"),
        ([drivebench(question=" ")], "record 1: question: expected non-empty text"),
        ([drivebench(answer=3)], "record 1: answer: expected text, found 3"),
        ([drivebench(scene_token=None)], "record 1: scene_token:"),
        ([drivebench(), 4], "record 2: expected an object"),
        ([drivebench(image_path={"CAM_BACK": "x.jpg"})], "record 1: image_paths: the question needs CAM_BACK_LEFT"),
        ([drivebench(image_path={"CAM_BACK_LEFT": None})], "record 1: image_path: expected an object camera -> path"),
        (drivelm(image_paths=[]), "scene scene-a, frame frame-a: image_paths:"),
        (drivelm(QA={"perception": [pair("Is it?", "No."), {"A": "x"}]}), "frame frame-a, perception 2: Q:"),
        (drivelm(QA={"essay": []}), "QA.essay: expected one of"),
        (drivelm(QA={"planning": {}}), "QA.planning: expected an array"),
        (drivelm(QA={"planning": []}), "the file holds no questions"),
        ([{"messages": []}], "record 1: messages: expected a user and an assistant message, found an empty array"),
        ({"s": {"key_frames": {"f": {"key_object_infos": {}}}}}, "holds DriveBench's descriptions of objects, no questions"),
    ],
)
def test_a_fault_is_named_and_nothing_is_written(source: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "in.json", source)
    with pytest.raises(DataError) as raised:
        convert_file(path, tmp_path / "out.json")
    assert str(path) in str(raised.value)
    assert message in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["in.json"]


def test_a_wrong_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.json", [drivebench()])
    with pytest.raises(UsageError, match="to: expected one of drivekd, llama-factory, ms-swift, drivebench, drivelm"):
        convert_file(path, tmp_path / "out.json", to="nuscenes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--out is the source itself"):
        convert_file(path, path)


def test_a_drivelm_file_with_all_its_keys_reads_back(tmp_path: Path) -> None:
    write_pictures(tmp_path / "nuscenes")
    report = convert_file(write_drivelm(tmp_path / "v1_1_train_nus.json"), tmp_path / "out.json")
    samples = read_samples(tmp_path / "out.json")
    frames = [(scene, frame) for scene, names in SCENES.items() for frame in names]
    assert len(samples) == report.records == len(QUESTIONS) * len(frames)
    assert (report.missing_images, report.malformed_tags, report.coordinates) == (0, 0, "pixel")
    assert len({image for sample in samples for image in sample.images}) == 6 * len(frames)
    assert [sample.answer_form for sample in samples] == [form for *_, form in QUESTIONS] * len(frames)
    assert [sample.scene for sample in samples] == [scene for scene, _ in frames for _ in QUESTIONS]


def test_a_drivebench_file_with_all_its_keys_reads_back(tmp_path: Path) -> None:
    report = convert_file(write_drivebench(tmp_path / "drivebench.json"), tmp_path / "out.json")
    assert (report.records, report.coordinates) == (len(DRIVEBENCH), "normalized")
    samples = read_samples(tmp_path / "out.json")
    assert [sample.answer_form for sample in samples] == [form for *_, form in DRIVEBENCH]
    assert [len(sample.images) for sample in samples] == [len(cameras) for *_, cameras, _ in DRIVEBENCH]
