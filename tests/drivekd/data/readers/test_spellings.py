"""What LLaMA-Factory, ms-swift and ShareGPT files hold is read where its meaning is kept, and refused by name where it is not."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from drivekd.data.answer_forms import infer_answer_form, several_letters
from drivekd.data.readers import read_file, read_samples
from drivekd.errors import DataError
from drivekd.sample import CAMERAS, Sample

LIGHT = {"role": "user", "content": "<image>What does the light show?"}
RED = {"role": "assistant", "content": "Red."}


def record(*turns: dict[str, Any], images: Any = ("1.jpg",), **changes: Any) -> dict[str, Any]:
    return {"messages": list(turns), "images": list(images), "question_type": "perception", **changes}


def read(folder: Path, *records: Any, **options: Any) -> list[Sample]:
    path = folder / "records.json"
    path.write_text(json.dumps(list(records)))
    return read_samples(path, **options)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


# --- spellings ------------------------------------------------------------------------------------------------------


def test_sharegpt_turns_one_image_and_an_id(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat does the light show?"}, {"from": "gpt", "value": "It is red."}]
    asked = {"id": "7", "image": "1.jpg", "conversations": turns}
    (sample,) = read(tmp_path, asked, capability="perception")
    assert (sample.question, sample.answer, sample.id) == ("What does the light show?", "It is red.", "7")
    assert sample.images == (tmp_path / "1.jpg",)
    with pytest.raises(DataError, match=r"record 1: question_type: expected one of .*--capability"):
        read(tmp_path, asked)


@pytest.mark.parametrize(
    "item", [{"type": "image", "image": "file://2.jpg"}, {"type": "image_url", "image_url": {"url": "2.jpg"}}], ids=str
)
def test_content_lists_hold_pictures_and_texts(tmp_path: Path, item: dict[str, Any]) -> None:
    asked = user([item, {"type": "text", "text": "What does "}, {"type": "text", "text": "it show?"}])
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}
    (sample,) = read(tmp_path, {"messages": [asked, answer], "question_type": "perception"})
    assert (sample.question, sample.answer, sample.images) == ("What does it show?", "Red.", (tmp_path / "2.jpg",))


def test_a_system_turn_is_the_checkpoints_and_that_is_said_once_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    system = {"role": "system", "content": "You drive."}
    with caplog.at_level(logging.WARNING, "drivekd"):
        samples = read(tmp_path, *[record(system, LIGHT, RED)] * 3, record(LIGHT, RED, system="You drive."))
    assert {sample.question for sample in samples} == {"What does the light show?"}
    assert [entry.getMessage().partition(": ")[2] for entry in caplog.records] == [
        "system turn left out: the checkpoint's own prompt holds (4 times)"
    ]


def test_each_answered_turn_is_a_sample_with_what_stands_before_it(tmp_path: Path) -> None:
    then = [user("So what should the car do? Options: A. Go. B. Stop."), {"role": "assistant", "content": "B"}]
    first, second = read(tmp_path, record(LIGHT, RED, *then, id=4))
    assert (first.question, first.answer, first.id) == ("What does the light show?", "Red.", "4-1")
    assert second.question == "What does the light show?\nRed.\nSo what should the car do? Options: A. Go. B. Stop."
    assert (second.answer, second.answer_form, second.id) == ("B", "choice", "4-2")
    assert second.source.endswith("record 1, turn 2")


def test_an_unanswered_last_turn_is_unlabelled_or_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="turn 2: messages: no assistant message"):
        read(tmp_path, record(LIGHT, RED, user("And now?")))
    assert [sample.answer for sample in read(tmp_path, record(LIGHT, RED, user("And now?")), unlabelled=True)] == ["Red.", None]


def test_options_of_an_earlier_turn_are_never_taken_for_a_later_ones(tmp_path: Path) -> None:
    first = [user("<image>Which? A. Car. B. Bus."), {"role": "assistant", "content": "A"}]
    with pytest.raises(DataError, match=r"turn 2: messages\[2\]\.content: options of an earlier turn"):
        read(tmp_path, record(*first, user("Is it near?"), {"role": "assistant", "content": "Yes."}))


REFUSED = [
    (record(LIGHT, RED, images=["https://a.b/1.jpg"]), "images[0]: expected the path of a file, found 'https://a.b/1.jpg'"),
    (record(LIGHT, RED, images=[{"bytes": "abc", "path": "1.jpg"}]), "images[0]: expected a path, found an object"),
    (record(LIGHT, RED, videos=["1.mp4"]), "videos: videos are not read"),
    (record(user("<video><image>What?"), RED), "messages[0].content: <video> is not read"),
    (
        record(user([{"type": "video", "video": "1.mp4"}]), RED),
        "messages[0].content[0]: expected text or an image, found 'video'",
    ),
    (record(LIGHT, {"role": "assistant", "content": "See <image>"}), "an answer cannot show a picture"),
    (record(LIGHT, RED, user("<image>And this?"), RED, images=["1.jpg"]), "messages[2].content: shows a picture of its own"),
    (record({"role": "tool", "content": "4"}, RED), "messages[0]: expected the role user, assistant or system; found 'tool'"),
    ({"instruction": "Look", "output": "Red"}, "messages: expected a user and an assistant message, found an Alpaca record"),
    (record(LIGHT, {"role": "assistant", "content": "Red \ud83d"}), "messages[1].content: holds \\ud83d, half of a character"),
    (record(user("<image>half \udc00?"), RED), "messages[0].content: holds \\udc00"),
]


@pytest.mark.parametrize(("faulty", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, faulty: Any, message: str) -> None:
    with pytest.raises(DataError, match="record 2") as raised:
        read(tmp_path, record(LIGHT, RED), faulty)
    assert message in str(raised.value)


def test_many_faulty_records_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"record 1: .*\(20,000 of 20,001 records have a problem; drivekd data validate"
    ) as raised:
        read(tmp_path, *[record(LIGHT, RED, question_type="essay")] * 20_000, record(LIGHT, RED))
    assert "\n" not in str(raised.value)


def test_faulty_records_can_be_left_out_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "records.json"
    half = record(LIGHT, {"role": "assistant", "content": "Red \ud83d"})
    path.write_text(json.dumps([record(LIGHT, RED), half, 7]))
    with caplog.at_level(logging.WARNING, "drivekd"):
        samples, summary = read_file(path, skip=True)
    assert len(samples) == 1
    assert (summary.records, summary.skipped) == (3, {"lone surrogate": 1, "no record": 1})
    assert "left out 2 of 3 records (1 lone surrogate, 1 no record)" in caplog.text


# --- where the picture marker stands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "question", "cameras"),
    [
        ("Explain this<image>", "Explain this", ()),
        ("CAM_BACK: <image> What does the light show?", "What does the light show?", ("CAM_BACK",)),
        ("This is the picture: <image>What is it?", "This is the picture: What is it?", ()),
        ("You see a road.\n<image>\nWhat is it?", "You see a road.\nWhat is it?", ()),
        ("What is it?", "What is it?", ()),
    ],
)
def test_a_markers_place_without_meaning_is_moved(tmp_path: Path, prompt: str, question: str, cameras: tuple[str, ...]) -> None:
    (sample,) = read(tmp_path, record(user(prompt), RED))
    assert (sample.question, sample.cameras) == (question, cameras)


def test_labels_of_six_cameras_become_their_names(tmp_path: Path) -> None:
    order = CAMERAS[::-1]
    prompt = "You see six views.\n" + "\n".join(f"{camera}: <image>" for camera in order) + "\nWhat matters?"
    (sample,) = read(tmp_path, record(user(prompt), RED, images=[f"{n}.jpg" for n in range(6)]))
    assert (sample.question, sample.cameras) == ("You see six views.\nWhat matters?", order)


@pytest.mark.parametrize(
    "prompt", ["Compare <image> and <image>.", "Is <image><image> wet?", "first: <image> second: <image> Which?"]
)
def test_a_markers_place_that_says_which_picture_is_refused(tmp_path: Path, prompt: str) -> None:
    with pytest.raises(DataError, match="its place says which picture is meant"):
        read(tmp_path, record(user(prompt), RED, images=["1.jpg", "2.jpg"]))


def test_cameras_are_known_from_the_pictures_names(tmp_path: Path) -> None:
    names = ["samples/CAM_BACK/n1__CAM_BACK__15.jpg", "CAM_FRONT_LEFT.jpg"]
    two = user("<image><image>What?")
    assert read(tmp_path, record(two, RED, images=names))[0].cameras == ("CAM_BACK", "CAM_FRONT_LEFT")
    for unknown in (["CAM_FRONT_WIDE.jpg", names[0]], ["a.jpg", names[0]], [names[0], "x/CAM_BACK/2.jpg"]):
        assert read(tmp_path, record(two, RED, images=unknown))[0].cameras == ()


# --- several letters ------------------------------------------------------------------------------------------------

WHICH = "Which apply? A. Red. B. Green. C. Off."


@pytest.mark.parametrize(
    "answer", ["A, C", "A and C.", "Final: {A, C}", "A/C: both", "A. & C.", "(A), (C)", "A, B, and C", "A or B"]
)
def test_several_letters_are_no_choice(tmp_path: Path, answer: str) -> None:
    assert len(several_letters(WHICH, answer)) > 1
    assert infer_answer_form(WHICH, answer) == "open"
    asked = record(user(f"<image>{WHICH}"), {"role": "assistant", "content": answer})
    assert read(tmp_path, asked)[0].answer_form == "open"
    with pytest.raises(DataError, match=r"meta\.kind: choice, but the answer states several options"):
        read(tmp_path, asked | {"meta": {"kind": "choice"}})


@pytest.mark.parametrize(
    "answer", ["A", "A. Red.", "B, A car is there.", "C, Explanation: A and B are wrong.", "A, a car", "Red", ""]
)
def test_one_letter_is_a_choice(answer: str) -> None:
    assert several_letters(WHICH, answer) == ()
    assert infer_answer_form(WHICH, answer) == "choice"


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.txt", "a.jsonl.gz", "a.json.gz", "packed.json"])
def test_json_json_lines_and_gzip_hold_the_same(tmp_path: Path, name: str) -> None:
    records = [record(LIGHT, RED), record(user("<image>Straße frei? 🚗"), RED)]
    lines = "lines" in name or name.split(".")[1] in ("jsonl", "ndjson", "txt")
    text = "\n\n".join(json.dumps(r, ensure_ascii=False) for r in records) if lines else json.dumps(records, indent=2)
    data = ("\ufeff" + text).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if "gz" in name or "packed" in name else data)
    assert [sample.question for sample in read_samples(path)] == ["What does the light show?", "Straße frei? 🚗"]


def test_a_broken_line_is_a_record_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(record(LIGHT, RED))
    path.write_text(f"{good}\n{good[:-9]}\n{good}\n")
    with pytest.raises(DataError, match="record 2: not valid JSON"):
        read_samples(path)
    assert len(read_samples(path, skip=True)) == 2


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps([record(LIGHT, RED)] * 50).encode())[:-20])
    with pytest.raises(DataError, match=r"a\.json\.gz: gzip file is cut off"):
        read_samples(path)
