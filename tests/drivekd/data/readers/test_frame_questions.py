"""DriveLM, DriveBench (clean and robust), NuScenes-QA and descriptions of objects become Samples with all that they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from record_files import (
    DRIVEBENCH,
    QUESTIONS,
    SCENES,
    picture_name,
    write_descriptions,
    write_drivebench,
    write_drivelm,
    write_pictures,
)

from drivekd.data.readers import read_file, read_samples
from drivekd.data.readers.descriptions import described, object_descriptions
from drivekd.errors import DataError
from drivekd.sample import CAMERAS


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


# --- DriveLM --------------------------------------------------------------------------------------------------------


def test_drivelm_is_read_directly_with_ids_over_its_four_lists(tmp_path: Path) -> None:
    write_pictures(tmp_path / "nuscenes")
    samples, summary = read_file(write_drivelm(tmp_path / "train.json"))
    frames = [(scene, frame) for scene, names in SCENES.items() for frame in names]
    assert (summary.format, summary.coordinates, summary.samples) == ("drivelm", "pixel", len(samples))
    assert [sample.id for sample in samples] == [f"{s}_{f}_{n}" for s, f in frames for n in range(len(QUESTIONS))]
    assert {(sample.scene, sample.frame) for sample in samples} == set(frames)
    assert [sample.topic for sample in samples[: len(QUESTIONS)]] == [topic for topic, *_ in QUESTIONS]
    assert samples[2].question == "What does <c2,CAM_FRONT,0.4378,0.3567> look like?"
    assert (samples[2].cameras, samples[2].tag) == (("CAM_FRONT",), (2,))
    assert samples[0].cameras == CAMERAS
    assert all(image.is_file() for sample in samples for image in sample.images)


def test_ids_count_over_the_lists_in_their_own_order_whatever_the_files(tmp_path: Path) -> None:
    pair = {"Q": "Is it wet?", "A": "No."}
    paths = {camera: f"{camera}.jpg" for camera in CAMERAS}
    frame = {"QA": {"behavior": [pair], "perception": [pair, pair], "planning": [pair]}, "image_paths": paths}
    samples = read_samples(write(tmp_path / "a.json", {"s": {"key_frames": {"f": frame}}}))
    assert [(sample.topic, sample.id) for sample in samples] == [
        ("behavior", "s_f_3"),
        ("perception", "s_f_0"),
        ("perception", "s_f_1"),
        ("planning", "s_f_2"),
    ]


@pytest.mark.parametrize("without", ["", None, ...])
def test_an_evaluation_file_without_answers_is_unlabelled(tmp_path: Path, without: Any) -> None:
    pair = {"Q": "Is it wet?"} if without is ... else {"Q": "Is it wet?", "A": without}
    paths = {camera: f"{camera}.jpg" for camera in CAMERAS}
    path = write(tmp_path / "a.json", {"s": {"key_frames": {"f": {"QA": {"planning": [pair]}, "image_paths": paths}}}})
    assert read_samples(path, unlabelled=True)[0].answer is None
    with pytest.raises(DataError, match=r"frame f, planning 1: A: no answer; give one, or read the file as unlabelled"):
        read_samples(path)


def test_predictions_are_no_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a model's predictions"):
        read_samples(
            write(tmp_path / "output.json", [{"id": "s_f_0", "question": "Is it?", "gt_answer": "No.", "answer": "Yes."}])
        )


# --- DriveBench -----------------------------------------------------------------------------------------------------


def test_drivebench_is_read_directly(tmp_path: Path) -> None:
    samples = read_samples(write_drivebench(tmp_path / "drivebench.json"))
    assert [sample.topic for sample in samples] == [topic for topic, *_ in DRIVEBENCH]
    assert [sample.cameras for sample in samples] == [tuple(cameras) for *_, cameras, _ in DRIVEBENCH]
    assert {(sample.scene, sample.frame, sample.tag) for sample in samples} == {("scene-9c", "frame-90", (1,))}


TAG = "<c1,CAM_FRONT,0.4100,0.5600>"
ROBUST = [  # tag, question, answer, then: topic, capability, form
    (0, "What is the current type of corruption?: A. Fog. B. Rain. D. Snow", "B. Rain", "perception", "perception", "choice"),
    (0, f"How does {TAG} move? Options: A. Left. B. On.", "B, Explanation: it goes on.", "perception", "perception", "choice"),
    (0, "Predict the behavior of the ego vehicle. Options: A. Left. B. On.", "A", "behavior", "reasoning", "choice"),
    (0, f"Is {TAG} a traffic sign?", "No, Explanation: it is a van.", "prediction", "reasoning", "yesno"),
    (1, "What are safe actions?", "Brake.", "planning", "planning", "open"),
    (2, "What are the important objects?", "A van.", "perception", "perception", "open"),
    (3, "What is noticed first?", "The van.", "prediction", "reasoning", "open"),
    (4, "Describe it.", "A street.", "perception", "perception", "open"),
    (5, "Which camera is most affected?", "The front one.", "perception", "perception", "open"),
]


def robust(tag: Any, question: str, answer: str) -> dict[str, Any]:
    paths = {camera: f"./BitError/{picture_name(camera, 'frame-90').removeprefix('samples/')}" for camera in CAMERAS}
    tokens = {"scene_token": "s", "frame_token": "f", "question_type": "robust_qas", "tag": tag}
    return {**tokens, "question": question, "answer": answer, "image_path": paths}


def test_robust_files_are_grouped_by_tag_and_question(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path / "robust.json", [robust([tag], q, a) for tag, q, a, *_ in ROBUST]))
    found = [(sample.topic, sample.capability, sample.answer_form) for sample in samples]
    assert found == [expected for *_, a, b, c in ROBUST for expected in [(a, b, c)]]
    assert [sample.answer for sample in samples] == [answer for _, _, answer, *_ in ROBUST]
    assert [len(sample.images) for sample in samples] == [1 if TAG in question else 6 for _, question, *_ in ROBUST]


@pytest.mark.parametrize("root", ["", "BitError"])
def test_robust_pictures_are_found_below_the_corruptions_folder(tmp_path: Path, root: str) -> None:
    path = write(tmp_path / "robust.json", [robust([4], "Describe it.", "A street.")])
    for camera in CAMERAS:
        picture = tmp_path / "pictures" / "BitError" / picture_name(camera, "frame-90").removeprefix("samples/")
        picture.parent.mkdir(parents=True)
        picture.touch()
    (sample,) = read_samples(path, image_root=tmp_path / "pictures" / root)
    assert all(image.is_file() for image in sample.images)


def test_a_drivebench_record_without_its_scene_is_named_as_one(tmp_path: Path) -> None:
    record = robust([4], "Describe it.", "A street.")
    del record["scene_token"]
    with pytest.raises(DataError, match="record 1: scene_token: expected non-empty text, found None"):
        read_samples(write(tmp_path / "robust.json", [record]))


@pytest.mark.parametrize("tag", [None, [], [6], [True], "0"])
def test_a_robust_question_without_a_known_tag_is_named(tmp_path: Path, tag: Any) -> None:
    with pytest.raises(DataError, match="record 1: tag: "):
        read_samples(write(tmp_path / "robust.json", [robust(tag, "What?", "A van.")]))


# --- NuScenes-QA ----------------------------------------------------------------------------------------------------


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "sample_token": "frame-10",
        "question": "Is it wet?",
        "answer": "no",
        "template_type": "exist",
        "num_hop": 1,
        **changes,
    }


def nuscenes_qa(folder: Path, *records: Any) -> Path:
    return write(folder / "qa.json", {"info": {"split": "val"}, "questions": list(records)})


def test_nuscenes_qa_with_the_frames_of_a_drivelm_file(tmp_path: Path) -> None:
    frames = write_drivelm(tmp_path / "drivelm.json")
    path = nuscenes_qa(tmp_path, asked(), asked(question="How many cars?", answer=3, template_type="count", num_hop=0))
    wet, many = read_samples(path, frames=frames)
    assert (wet.topic, wet.hop, wet.frame, wet.answer, wet.answer_form, wet.id) == ("exist", 1, "frame-10", "no", "yesno", "1")
    assert (many.topic, many.hop, many.answer, many.answer_form) == ("count", 0, "3", "open")
    assert wet.cameras == CAMERAS


def test_frames_come_from_nuscenes_tables_or_a_plain_map(tmp_path: Path) -> None:
    name = picture_name("CAM_FRONT", "frame-10")
    rows = [
        {"sample_token": "frame-10", "filename": name, "is_key_frame": True},
        {"sample_token": "frame-10", "filename": name.replace("samples", "sweeps"), "is_key_frame": False},
        {"sample_token": "frame-10", "filename": "samples/LIDAR_TOP/1.pcd.bin", "is_key_frame": True},
    ]
    path = nuscenes_qa(tmp_path, asked())
    for value in (rows, {"frame-10": {"CAM_FRONT": name}}):
        (sample,) = read_samples(path, frames=write(tmp_path / "frames.json", value))
        assert (sample.cameras, sample.images) == (("CAM_FRONT",), (tmp_path / name,))
    with pytest.raises(DataError, match="names no pictures of frames"):
        read_samples(path, frames=write(tmp_path / "frames.json", [{"token": "x"}]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_token": "other"}, "sample_token: no frame other in the file of frames (9 frames)"),
        ({"num_hop": "1"}, "num_hop: expected a whole number, found '1'"),
        ({"answer": ["no"]}, "answer: expected text"),
        ({"template_type": None}, "template_type: expected non-empty text"),
    ],
)
def test_a_fault_of_nuscenes_qa_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match="record 2: ") as raised:
        read_samples(nuscenes_qa(tmp_path, asked(), asked(**changes)), frames=write_drivelm(tmp_path / "drivelm.json"))
    assert message in str(raised.value)


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    path, frames = nuscenes_qa(tmp_path, asked(), asked()), write_drivelm(tmp_path / "drivelm.json")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"answer": "no"', '"answer": "no", "answer": "yes"', 1), encoding="utf-8")
    with pytest.raises(DataError, match="record 1: key 'answer' stands twice"):
        read_samples(path, frames=frames)
    rows = [{"filename": "samples/CAM_FRONT/a.jpg", "sample_token": "frame-10", "is_key_frame": True}]
    (tmp_path / "rows.json").write_text(json.dumps(rows).replace("}", ', "filename": "b.jpg"}'), encoding="utf-8")
    with pytest.raises(DataError, match="record 1: key 'filename' stands twice"):
        read_samples(nuscenes_qa(tmp_path, asked()), frames=tmp_path / "rows.json")


def test_nuscenes_qa_without_frames_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names frames and no pictures; .* --frames FILE"):
        read_samples(nuscenes_qa(tmp_path, asked()))


# --- descriptions of objects ----------------------------------------------------------------------------------------


def test_descriptions_are_joined_to_questions_by_frame(tmp_path: Path) -> None:
    descriptions = object_descriptions(write_descriptions(tmp_path / "v.json", {"scene-9c": ("frame-90",), "x": ("frame-1",)}))
    samples = read_samples(write_drivebench(tmp_path / "drivebench.json"))
    (one,) = described(samples[0], descriptions)
    assert (one.tag, one.camera, one.category) == ("<c1,CAM_FRONT,0.4797,0.5706>", "CAM_FRONT", "Vehicle")
    assert one.box == (966 / 1600, 403.5 / 900, 1224 / 1600, 591.5 / 900)
    assert one.description == "A grey van."
    assert described(samples[0], {}) == ()


@pytest.mark.parametrize(("tag", "info"), [("<c1,CAM_FRONT,1>", {}), ("<c1,CAM_FRONT,1.0,2.0>", {"2d_bbox": [1, 2, 3]})])
def test_a_faulty_description_is_named(tmp_path: Path, tag: str, info: dict[str, Any]) -> None:
    path = write(tmp_path / "v.json", {"s": {"key_frames": {"f": {"key_object_infos": {tag: info}}}}})
    with pytest.raises(DataError, match="scene s, frame f"):
        object_descriptions(path)
