"""Reading Drive-KD records: every fault names file, record and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from record_files import DRIVEKD, write_drivekd

from drivekd.data.answer_forms import infer_answer_form, options
from drivekd.data.readers import check_images, read_samples
from drivekd.data.writers.records import drivekd_record
from drivekd.errors import DataError
from drivekd.sample import Sample

CHOICE = "Which way does it go? Please select from the following options: A. Left. B. Right."


def record(**changes: Any) -> dict[str, Any]:
    """A sound record with two images; a value of ... removes a key."""
    value = {
        "messages": [
            {"role": "user", "content": f"<image><image>{CHOICE}"},
            {"role": "assistant", "content": "B. Right."},
        ],
        "images": ["front.jpg", "back.jpg"],
        "question_type": "planning",
        "meta": {"kind": "choice", "topic": "lane", "scene": "s1", "cameras": ["CAM_FRONT", "CAM_BACK"], "ego_speed_mps": 8},
        **changes,
    }
    return {key: entry for key, entry in value.items() if entry is not ...}


def messages(question: str, answer: str | None = "Yes.") -> list[dict[str, str]]:
    user = {"role": "user", "content": question}
    return [user] if answer is None else [user, {"role": "assistant", "content": answer}]


def write(folder: Path, *records: Any) -> Path:
    path = folder / "records.json"
    path.write_text(json.dumps(list(records)))
    return path


def test_a_records_own_structured_answer_is_compact_json_that_fits_its_schema(tmp_path: Path) -> None:
    own = {"actions": ["stop"], "reason": "Glätte", "probability": None}
    (sample,) = read_samples(write(tmp_path, record(structured=own)))
    assert sample.structured == '{"actions":["stop"],"reason":"Glätte","probability":null,"complete":true}'
    assert drivekd_record(sample, tmp_path)["structured"] == {**own, "complete": True}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"structured": [1]}, "expected an object"),
        ({"structured": "{}"}, "expected an object"),
        ({"structured": {"actions": ["stop"]}}, "expected the properties actions, reason, probability, complete"),
        ({"structured": {"actions": ["fly"], "reason": None, "probability": None}}, "'fly' is none of"),
        ({"structured": {"actions": ["stop"], "reason": None, "probability": 7}}, "7 is not within 0 to 1"),
        ({"structured": {"actions": ["stop"], "reason": None, "probability": None, "complete": False}}, "a whole answer"),
        ({"structured": {"actions": None, "reason": "", "probability": None}}, "nothing but null"),
        ({"structured": {"actions": None, "reason": "\ud83d", "probability": None}}, "half of a character"),
        (
            {
                "structured": {
                    "objects": [{"camera": "CAM_BACK_LEFT", "position": None, "category": "car", "status": None}],
                },
                "question_type": "perception",
            },
            "'CAM_BACK_LEFT' is none of CAM_FRONT, CAM_BACK",
        ),
        (
            {
                "structured": {"actions": ["stop"], "reason": None, "probability": None},
                "messages": [*messages("<image><image>Wet?"), *messages("And now?")],
                "meta": {},
            },
            "one answer for a record of 2 turns",
        ),
    ],
)
def test_a_structured_answer_that_no_model_could_give_is_named(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=rf"records.json, record 1: structured: .*{why}"):
        read_samples(write(tmp_path, record(**changes)))


def test_a_sound_record_becomes_a_sample(tmp_path: Path) -> None:
    path = write(tmp_path, record())
    assert read_samples(path) == [
        Sample(
            source=f"{path}, record 1",
            capability="planning",
            question=CHOICE,
            answer="B. Right.",
            images=(tmp_path / "front.jpg", tmp_path / "back.jpg"),
            answer_form="choice",
            topic="lane",
            scene="s1",
            cameras=("CAM_FRONT", "CAM_BACK"),
        )
    ]


def test_image_root_replaces_the_files_folder_and_absolute_paths_stay(tmp_path: Path) -> None:
    path = write(tmp_path, record(images=["front.jpg", "/data/back.jpg"]))
    assert read_samples(path, image_root=Path("/root"))[0].images == (Path("/root/front.jpg"), Path("/data/back.jpg"))


def test_markers_may_be_followed_by_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path, record(messages=messages("<image>\n<image>\nIs it wet?\n"), meta=...))
    assert read_samples(path)[0].question == "Is it wet?"


@pytest.mark.parametrize(
    ("question", "answer", "form"),
    [
        (CHOICE, "B", "choice"),
        ("Is it red?", "No.", "yesno"),
        ("Is it red?", "yes, it is", "yesno"),
        ("What does the sign mean?", "No entry.", "open"),
        ("What leads to a collision?", "No such action will lead to a collision.", "open"),
        ("What is it?", "A car.", "open"),
        ("Is it red?", None, "open"),
    ],
)
def test_the_answers_form_is_inferred_without_meta(question: str, answer: str | None, form: str, tmp_path: Path) -> None:
    assert infer_answer_form(question, answer) == form
    path = write(tmp_path, record(messages=messages(f"<image><image>{question}", answer), meta=...))
    assert read_samples(path, unlabelled=True)[0].answer_form == form


MALFORMED = [
    ([1, 2], "expected an object, found an array"),
    (record(messages=...), "messages: expected a user and an assistant message, found null"),
    (record(messages=[]), "messages: expected a user and an assistant message, found an empty array"),
    (record(messages=messages("<image><image>Is it?", None)), "messages: no assistant message"),
    (record(messages=messages("<image><image>Is it?", " \n")), "messages[1].content is empty"),
    (record(messages=messages("<image><image>")), "messages[0].content: the question is empty"),
    (record(messages=messages("<image>Is it?")), "images: 2 given for 1 <image>"),
    (record(messages=messages("<image><image><image>Is it?")), "images: 2 given for 3 <image>"),
    (record(messages=messages("<image>Is this <image> wet?")), "messages[0].content: every <image> must stand before"),
    (
        record(messages=[*messages("<image><image>Is it?", None)] * 2),
        "messages: expected the roles user, assistant; found user, user",
    ),
    (record(messages=list(reversed(messages("<image><image>Is it?")))), "found assistant, user"),
    (record(messages=[*messages("<image><image>Is it?"), {"role": "system", "content": "Drive."}]), "user, assistant, system"),
    (
        record(messages=[{"role": "tool", "content": "7"}]),
        "messages[0]: expected the role user, assistant or system; found 'tool'",
    ),
    (record(messages=[{"role": "user", "content": None}]), "messages[0].content: expected a string, found null"),
    (record(messages=["hello"]), "messages[0].content: expected a string"),
    (record(images=...), "images: expected an array of paths, found null"),
    (record(images=[]), "images: expected an array of paths, found an empty array"),
    (record(images=["front.jpg", 3]), "images[1]: expected a path, found a number"),
    (record(images=["", "back.jpg"]), "images[0]: expected a path, found an empty string"),
    (record(question_type=...), "question_type: expected one of perception, reasoning, planning, found None"),
    (record(question_type="prediction"), "question_type: expected one of perception, reasoning, planning, found 'prediction'"),
    (record(question_type=["planning"]), "question_type: expected one of"),
    (record(meta=[1]), "meta: expected an object, found an array"),
    (record(meta={"kind": "essay"}), "meta.kind: expected one of choice, yesno, open, found 'essay'"),
    (record(meta={"senes": "s1"}), "meta.senes: unknown key"),
    (record(meta={"scene": 4}), "meta.scene: expected a string, found a number"),
    (record(meta={"cameras": ["CAM_FRONT"]}), "meta.cameras: 1 named for 2 images"),
    (record(meta={"cameras": ["CAM_FRONT", "CAM_ROOF"]}), "meta.cameras: expected names out of"),
    (record(meta={"ego_speed_mps": float("nan")}), "meta.ego_speed_mps: expected metres per second, found nan"),
    (record(meta={"ego_speed_mps": float("inf")}), "meta.ego_speed_mps: expected metres per second, found inf"),
    (record(meta={"ego_speed_mps": "fast"}), "meta.ego_speed_mps: expected metres per second, found 'fast'"),
    (record(messages=messages("<image><image>Is it?"), meta={"kind": "choice"}), "meta.kind: choice, but the question offers no"),
]


@pytest.mark.parametrize(("faulty", "message"), MALFORMED, ids=[message for _, message in MALFORMED])
def test_a_fault_names_file_record_and_field(faulty: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, record(), faulty)
    with pytest.raises(DataError) as raised:
        read_samples(path)
    assert str(raised.value).startswith(f"{path}, record 2: ")
    assert message in str(raised.value)


def test_unlabelled_allows_a_missing_or_empty_answer_and_keeps_others(tmp_path: Path) -> None:
    question = "<image><image>Is it wet?"
    path = write(
        tmp_path,
        *(record(messages=messages(question, answer), meta=...) for answer in (None, "", "Yes.")),
    )
    assert [sample.answer for sample in read_samples(path, unlabelled=True)] == [None, None, "Yes."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file is empty (0 bytes)"),
        (b" \n", "file is empty (2 bytes)"),
        (b"[]", "the file holds no records"),
        (b"{}", "the file holds no records"),
        (b"hello", "not valid JSON"),
        (json.dumps([record()]).encode()[:-20], "not valid JSON, perhaps cut off"),
        (b"\xff\xfe[\x00]\x00", "not UTF-8 text"),
        (b'{"a": 1}', "or NuScenes-QA, found an object of other shape (keys a)"),
        (b"3", "found a number"),
    ],
)
def test_a_file_that_is_none_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"records\.json") as raised:
        read_samples(path)
    assert message in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: file cannot be read \(No such file"):
        read_samples(tmp_path / "none.json")


def test_check_images_names_the_first_record_and_counts(tmp_path: Path) -> None:
    (tmp_path / "front.jpg").touch()
    samples = read_samples(write(tmp_path, record(), record(images=["front.jpg", "side.jpg"])))
    with pytest.raises(DataError, match=r"record 1: images: no file .*back\.jpg \(2 of 3 image files are missing\)"):
        check_images(samples)
    (tmp_path / "back.jpg").touch()
    (tmp_path / "side.jpg").touch()
    check_images(samples)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Pick. Options: A. Left. B. Right.", {"A": "Left", "B": "Right"}),
        ("Pick from the following options: A. Go on. It is fast. B. Stop.", {"A": "Go on. It is fast", "B": "Stop"}),
        ("Pick.\nA) one\nB) two\nC) three", {"A": "one", "B": "two", "C": "three"}),
        ("Which vitamin? Options: A. Vitamin C. B. None.", {"A": "Vitamin C", "B": "None"}),
        ("Is it A. Smith or B. Jones? Options: A. Yes. B. No.", {"A": "Yes", "B": "No"}),
        ("Is object A. Smith a person?", {}),
        ("Is it red?", {}),
    ],
)
def test_options(question: str, expected: dict[str, str]) -> None:
    assert options(question) == expected


def test_a_file_as_drive_kd_publishes_it_reads(tmp_path: Path) -> None:
    samples = read_samples(write_drivekd(tmp_path / "demo.json"))
    assert [sample.answer_form for sample in samples] == [form for *_, form in DRIVEKD]
    assert [len(sample.images) for sample in samples] == [pictures for *_, pictures, _ in DRIVEKD]
    assert [sample.question for sample in samples] == [question for _, question, *_ in DRIVEKD]


@pytest.mark.parametrize(("key", "wrong"), [("id", 3), ("tag", [True]), ("tag", 2), ("hop", "1")])
def test_what_a_data_set_says_of_a_question_has_its_type(tmp_path: Path, key: str, wrong: object) -> None:
    with pytest.raises(DataError, match=rf"record 1: meta\.{key}: expected "):
        read_samples(write(tmp_path, record(meta={key: wrong})))


def test_what_a_data_set_says_of_a_question_is_kept(tmp_path: Path) -> None:
    (sample,) = read_samples(write(tmp_path, record(meta={"frame": "f", "id": "s_f_3", "tag": [0, 2], "hop": 1})))
    assert (sample.frame, sample.id, sample.tag, sample.hop) == ("f", "s_f_3", (0, 2), 1)
