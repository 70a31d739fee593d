"""DriveLM and DriveBench become Drive-KD records that read back."""

from __future__ import annotations

import gzip
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


# --- to other formats -----------------------------------------------------------------------------------------------


def as_asked(path: Path) -> list[tuple[Any, ...]]:
    """What must not be lost on the way."""
    samples = read_samples(path, unlabelled=True)
    return [(s.question, s.answer, s.capability, s.topic, s.answer_form, s.scene, s.frame, s.cameras, s.images) for s in samples]


@pytest.mark.parametrize("to", ["drivekd", "llama-factory", "ms-swift", "drivebench", "drivelm"])
@pytest.mark.parametrize("name", ["out.json", "out.json.gz"])
def test_a_way_there_and_back_loses_nothing(tmp_path: Path, to: Any, name: str) -> None:
    write_pictures(tmp_path / "nuscenes")
    source = write_drivelm(tmp_path / "source.json")
    convert_file(source, tmp_path / name, to=to)
    key = {"llama-factory": "conversations", "drivebench": "scene_token", "drivelm": "scene-7a"}.get(to, "messages")
    text = gzip.decompress((tmp_path / name).read_bytes()) if name.endswith("gz") else (tmp_path / name).read_bytes()
    assert key.encode() in text
    there = sorted(as_asked(tmp_path / name)) if to == "drivelm" else as_asked(tmp_path / name)
    assert there == (sorted(as_asked(source)) if to == "drivelm" else as_asked(source))


def test_drivelm_is_one_document_and_no_lines(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out\.jsonl\.gz: DriveLM is one nested document"):
        convert_file(write_drivelm(tmp_path / "source.json"), tmp_path / "out.jsonl.gz", to="drivelm")


def test_to_drivelm_counts_ids_and_writes_pixels(tmp_path: Path) -> None:
    convert_file(write_drivelm(tmp_path / "source.json"), tmp_path / "out.json", to="drivelm")
    pair = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["scene-7a"]["key_frames"]["frame-10"]["QA"][
        "perception"
    ][2]
    assert pair == {"Q": "What does <c2,CAM_FRONT,700.5,321.0> look like?", "A": "No entry.", "tag": [2]}
    assert [s.id for s in read_samples(tmp_path / "out.json")] == [s.id for s in read_samples(tmp_path / "source.json")]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"frame": "f", "cameras": ["CAM_BACK"]}, "names no scene (meta.scene), which this format needs"),
        ({"scene": "s", "cameras": ["CAM_BACK"]}, "names no frame"),
        ({"scene": "s", "frame": "f", "topic": "prediction"}, "names no cameras of its 1 pictures"),
        ({"scene": "s", "frame": "f", "cameras": ["CAM_BACK"]}, "a reasoning question needs prediction or behavior here"),
    ],
)
@pytest.mark.parametrize("to", ["drivebench", "drivelm"])
def test_what_a_format_cannot_hold_is_refused_by_record(tmp_path: Path, meta: Any, message: str, to: Any) -> None:
    messages = [{"role": "user", "content": "<image>Is it?"}, {"role": "assistant", "content": "No."}]
    record = {"messages": messages, "images": ["1.jpg"], "question_type": "reasoning", "meta": meta}
    with pytest.raises(DataError, match="record 1: ") as raised:
        convert_file(write(tmp_path / "in.json", [record]), tmp_path / "out.json", to=to)
    assert message in str(raised.value)
    assert not (tmp_path / "out.json").exists()


def test_what_is_not_read_comes_along(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Drive."}, *read_messages()]
    source = {
        "messages": messages,
        "images": ["1.jpg"],
        "question_type": "planning",
        "own": {"a": [1]},
        "meta": {"ego_speed_mps": 3},
    }
    report = convert_file(write(tmp_path / "in.json", [source]), tmp_path / "out.jsonl")
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    written = json.loads(line)
    assert (written["own"], written["meta"]["ego_speed_mps"], written["messages"]) == ({"a": [1]}, 3, read_messages())
    assert report.notes == {"system turn left out: the checkpoint's own prompt holds": 1}


def read_messages() -> list[dict[str, str]]:
    return [{"role": "user", "content": "<image>Is it free?"}, {"role": "assistant", "content": "Yes."}]


def test_faulty_records_stop_or_are_left_out_and_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "in.json", [drivebench(), drivebench(question_type="essay"), drivebench(question="Else?")])
    report = convert_file(source, tmp_path / "out.json", skip=True)
    assert (report.records, report.left_out) == (2, {"question_type": 1})
    assert ("left out: question_type", "1") in report.rows
    with pytest.raises(DataError, match="record 2: question_type"):
        convert_file(source, tmp_path / "other.json")
    with pytest.raises(UsageError, match="capability: expected one of"):
        convert_file(source, tmp_path / "other.json", capability="essay")  # type: ignore[arg-type]
