"""validate_file names every defect by record and field, counts them by kind, and says nothing of a sound file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from record_files import write_drivebench, write_drivekd, write_drivelm, write_pictures

from drivekd.data.checks.findings import Tally
from drivekd.data.checks.validate import ValidationReport, validate_file
from drivekd.sample import CAMERAS


def record(image: str = "good.jpg", question: str = "Is it wet?", answer: str | None = "No.", **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"<image>{question}"}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "images": [image], "question_type": "perception", **changes}


def write(folder: Path, *records: Any) -> Path:
    path = folder / "records.json"
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:-900])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image", encoding="utf-8")
    return tmp_path


def kinds(tallies: Sequence[Tally]) -> dict[str, int]:
    return {tally.kind: tally.count for tally in tallies}


def found(report: ValidationReport) -> list[str]:
    return [text for tally in (*report.problems, *report.warnings) for text in tally.first]


def test_a_sound_file_is_ok(folder: Path) -> None:
    report = validate_file(write(folder, record(), record(question="What is it?", answer="A car.")))
    assert (report.ok, report.problems, report.warnings) == (True, (), ())
    assert report.counts == {("perception", "yesno"): 1, ("perception", "open"): 1}
    assert dict(report.rows)["records (messages)"] == "2"
    assert dict(report.rows)["images"] == "1"


def test_published_shapes_have_nothing_false(tmp_path: Path) -> None:
    for write_file in (write_drivelm, write_drivebench):
        report = validate_file(write_file(tmp_path / "file.json"), skip_images=True)
        assert (kinds(report.problems), kinds(report.warnings)) == ({}, {}), write_file.__name__
        assert report.images is None


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        ("cut.jpg", "broken picture", "truncated"),
        ("empty.jpg", "broken picture", "empty"),
        ("text.jpg", "broken picture", "text.jpg"),
        ("none.jpg", "missing picture", "no file"),
    ],
)
def test_a_bad_image_is_named_once_with_its_first_record(image: str, kind: str, message: str, folder: Path) -> None:
    path = write(folder, record(), record(image), record(image, "Is it dry?"))
    (tally,) = validate_file(path).problems
    assert (tally.kind, tally.count) == (kind, 1)
    assert tally.first[0].startswith(f"{path}, record 2: images: ")
    assert message in tally.first[0]
    assert validate_file(path, skip_images=True).ok


def test_an_image_root_finds_pictures_below_other_names(folder: Path) -> None:
    for name in ("elsewhere", "100k"):
        (folder / name).mkdir()
    (folder / "good.jpg").rename(folder / "100k" / "good.jpg")
    path = write(folder / "elsewhere", record(".../data/100k/good.jpg"))
    assert not validate_file(path).ok
    assert validate_file(path, image_root=folder).ok
    assert not validate_file(path, image_root=folder / "100k").ok, "a file name alone may be any picture"


def test_a_camera_that_the_pictures_name_contradicts_is_a_warning(folder: Path) -> None:
    (folder / "good.jpg").rename(folder / "CAM_BACK.jpg")
    report = validate_file(write(folder, record("CAM_BACK.jpg", meta={"cameras": ["CAM_FRONT"]})))
    assert report.ok and kinds(report.warnings) == {"camera contradicts the picture's name": 1}
    assert validate_file(write(folder, record("CAM_BACK.jpg", meta={"cameras": ["CAM_BACK"]}))).warnings == ()


# --- texts ----------------------------------------------------------------------------------------------------------

WHICH = "Which way? Options: A. Left. B. Right."
PROBLEMS = [
    ("", "At <c1,CAM_FRONT,4.32,0.85>.", "tag out of range", "answer: '<c1,CAM_FRONT,4.32,0.85>'"),
    ("", "At <c1,CAM_ROOF,0.32,0.85>.", "tag out of range", "answer: '<c1,CAM_ROOF,0.32,0.85>'"),
    ("Is <c1,CAM_FRONT> red?", "No.", "malformed tag", "question: malformed tag '<c1,CAM_FRONT>'"),
    ("", "IDs: <c4,CAM_FRONT,0.84,0.83", "cut answer", "answer: ends within the tag '<c4,CAM_FRONT,0.84,0.83'"),
    ("", "There is a car,", "cut answer", "answer: breaks off"),
    ("", "There is a car (grey", "cut answer", "answer: breaks off"),
    ("", "<c1,CAM_FRONT,0.1,0.2> and <c2,CAM_FRONT,0.1,0.2>.", "duplicate object", "answer: c1 and c2 are one place"),
    ("", "<c1,CAM_FRONT,0.1,0.2> or <c1,CAM_BACK,0.1,0.2>.", "duplicate object", "answer: c1 is two places"),
    ("", "IDs: <c1,CAM_BACK,0.1,0.2>, <c1,CAM_BACK,0.1,0.2>.", "duplicate object", "stands twice in one list"),
    (WHICH, "C. Back.", "option letters", "answer: C is none of the options A, B"),
    (WHICH, "A. Right.", "option letters", "answer: A with the words of option B"),
    ("Which? Options: A. Left. B. Right. D. Back.", "A. Left.", "option letters", "question: offers A, B, D and no C"),
    ("", "Half \ud83d.", "lone surrogate", "messages[1].content: holds \\ud83d"),
]


@pytest.mark.parametrize(
    ("question", "answer", "kind", "message"), PROBLEMS, ids=[f"{p[2]}: {p[1] or p[0]}"[:60] for p in PROBLEMS]
)
def test_a_defect_of_the_words_is_a_problem(folder: Path, question: str, answer: str, kind: str, message: str) -> None:
    path = write(folder, record(), record(question=question or "What is it?", answer=answer))
    (tally,) = validate_file(path).problems
    assert (tally.kind, tally.count) == (kind, 1)
    assert tally.first[0].startswith(f"{path}, record 2: ")
    assert message in tally.first[0]


SOUND = [
    (
        "",
        "A van, <c1,CAM_FRONT,0.1,0.2>, and a bus, <c2,CAM_FRONT,0.3,0.2>. IDs: <c1,CAM_FRONT,0.1,0.2>, <c2,CAM_FRONT,0.3,0.2>.",
    ),
    ("", "Probability: High"),
    ("", "It is 3 < 5 and c<d."),
    ("", "A car (grey) is near [see above]"),
    (WHICH, "B"),
    (WHICH, "Final: {B. Right.}  \nObject: a van"),
    (WHICH, "B, Explanation: the lane ends."),
    (WHICH, "Right."),
    ("Which vitamin? Options: A. Vitamin C. B. None.", "A"),
    ("Predict it. Options: A. It goes straight. It is slow. B. It stands.", "A. It goes straight. It is slow."),
]


@pytest.mark.parametrize(("question", "answer"), SOUND, ids=[answer[:40] for _, answer in SOUND])
def test_what_is_sound_is_not_named(folder: Path, question: str, answer: str) -> None:
    report = validate_file(write(folder, record(question=question or "What is it?", answer=answer)))
    assert (found(report), report.ok) == ([], True)


def test_tags_are_judged_in_the_files_own_coordinates(folder: Path) -> None:
    pixels = [record(question=f"Is <c1,CAM_FRONT,{x}.3,503.6> red?") for x in (714, 20, 1599)]
    report = validate_file(write(folder, *pixels))
    assert (report.ok, report.coordinates) == (True, "pixel")
    report = validate_file(write(folder, *pixels, record(question="Is <c1,CAM_FRONT,0.3,0.6> red, <c2,CAM_FRONT,1700.0,3.0>?")))
    assert (kinds(report.problems), kinds(report.warnings)) == ({"tag out of range": 1}, {"mixed coordinates": 1})


def test_an_answer_without_a_full_stop_is_told_where_others_have_one(folder: Path) -> None:
    words = "The ego vehicle should slow down for the van on the left"
    sound = [record(question=f"What is {n}?", answer=f"{words} {n}.") for n in range(30)]
    report = validate_file(write(folder, *sound, record(question="What is safe?", answer=words)))
    assert report.ok and kinds(report.warnings) == {"perhaps cut": 1}
    assert "record 31: answer: ends without a full stop" in report.warnings[0].first[0]
    bare = [record(question=f"What is {n}?", answer=f"{words} {n}") for n in range(30, 60)]
    assert validate_file(write(folder, *sound, *bare)).warnings == ()  # half of them: that is how this file writes


# --- between records ------------------------------------------------------------------------------------------------


def test_repeats_are_warnings(folder: Path) -> None:
    path = write(folder, record(), record(), record(answer="Yes."), record("./good.jpg", "Else?"))
    report = validate_file(path)
    assert report.ok
    assert kinds(report.warnings) == {"duplicate record": 1, "two answers": 1}
    assert found(report) == [
        f"{path}, record 2: duplicate of {path}, record 1",
        f"{path}, record 3: another answer than {path}, record 1",
    ]


def six(order: Sequence[str], question: str = "What matters?") -> dict[str, Any]:
    asked = record(question=f"{'<image>' * 5}{question}", answer="A car.")
    return {**asked, "images": [f"{camera}.jpg" for camera in order]}


def test_two_camera_orders_are_told_with_both(folder: Path) -> None:
    other = (*CAMERAS[:2][::-1], *CAMERAS[2:])
    path = write(folder, six(CAMERAS), six(CAMERAS, "What else?"), six(other))
    report = validate_file(path, skip_images=True)
    assert report.ok and kinds(report.warnings) == {"two camera orders": 1}
    assert "record 3: cameras: CAM_FRONT_LEFT, CAM_FRONT, " in report.warnings[0].first[0]
    one = {**record("CAM_BACK.jpg", "What is behind?", "A bus.")}
    two = {**six(CAMERAS[:2], "What is ahead?"), "messages": record(question="<image>What is ahead?")["messages"]}
    path = write(folder, six(CAMERAS), one, two)
    assert validate_file(path, skip_images=True).warnings == ()  # fewer cameras are no other order


def test_several_letters_are_a_warning(folder: Path) -> None:
    report = validate_file(write(folder, record(question="Which apply? A. Red. B. Green. C. Off.", answer="A, C")))
    assert report.ok and list(report.counts) == [("perception", "open")]
    assert kinds(report.warnings) == {"several letters in the answer: not scored as a choice": 1}


def test_an_answer_that_names_no_option_is_a_warning(folder: Path) -> None:
    report = validate_file(write(folder, record(question=WHICH, answer="Straight on.")))
    assert report.ok and kinds(report.warnings) == {"answer names no option": 1}


# --- files ----------------------------------------------------------------------------------------------------------


def test_all_problems_of_all_records_are_counted(folder: Path) -> None:
    path = write(
        folder,
        record(question_type="essay", meta={"scene": 3}),
        record(answer=None),
        record("cut.jpg", "Where is <c1,CAM_FRONT,4.32,0.85>?", "At <c1,CAM_FRONT,0.4"),
        record("none.jpg"),
        17,
    )
    report = validate_file(path)
    assert report.records == 5
    assert kinds(report.problems) == {
        "question_type": 1, "meta": 1, "answer missing": 1, "broken picture": 1, "missing picture": 1, "no record": 1,
        "tag out of range": 1, "cut answer": 1,
    }  # fmt: skip
    assert report.faulty == {0, 1, 2, 4}  # record 4 is sound but for its picture


def test_twenty_thousand_wrong_records_are_a_few_lines(folder: Path) -> None:
    wrong = record(question_type="essay", answer="", meta={"senes": "s"})
    report = validate_file(write(folder, *[wrong] * 20_000))
    assert kinds(report.problems) == {"answer missing": 20_000, "question_type": 20_000, "meta": 20_000}
    assert all(len(tally.first) == 5 and "\n" not in str(tally) for tally in report.problems)
    assert "(first of 20,000)" in str(report.problems[0])


def test_unlabelled_records_are_sound_when_asked_for(folder: Path) -> None:
    path = write(folder, record(answer=None))
    assert validate_file(path, unlabelled=True).ok
    assert not validate_file(path).ok


def test_an_unreadable_file_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.touch()
    assert found(validate_file(path)) == [f"{path}: file is empty (0 bytes); expected JSON"]


def test_a_file_that_breaks_off_is_looked_at_up_to_there(folder: Path) -> None:
    path = write(folder, record(question_type="essay"), record(), record(question="Else?"))
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    report = validate_file(path)
    assert kinds(report.problems) == {"question_type": 1, "file": 1}
    assert report.records == 2
    assert "perhaps cut off" in report.problems[1].first[0]


def test_broken_tags_and_missing_pictures_of_a_published_file_are_found(tmp_path: Path) -> None:
    report = validate_file(write_drivekd(tmp_path / "demo.json"))
    texts = "\n".join(found(report))
    assert "record 3: answer: '<c1,CAM_FRONT,4.30,0.85>' (expected a camera of ours and x, y in 0..1)" in texts
    assert "record 2: answer: ends within the tag '<c4,CAM_FRONT,0.8400,0.83'" in texts
    assert report.images == 27  # three records of one picture, four of six
    assert kinds(report.problems) == {"tag out of range": 1, "cut answer": 1, "missing picture": 27}


def test_a_name_that_is_too_long_is_a_missing_picture(folder: Path) -> None:
    report = validate_file(write(folder, record(images=["x" * 5000 + ".jpg"])))
    assert kinds(report.problems) == {"missing picture": 1}


def test_a_drivelm_file_is_checked_as_it_comes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "nuscenes")  # their bytes are no pictures
    report = validate_file(write_drivelm(tmp_path / "train.json"))
    assert (report.format, report.coordinates, report.images) == ("drivelm", "pixel", 54)
    assert kinds(report.problems) == {"broken picture": 54}


def test_json_says_the_same(folder: Path) -> None:
    report = validate_file(write(folder, record(question_type="essay"), record()))
    value = json.loads(json.dumps(report.to_json()))
    assert (value["ok"], value["records"], value["questions"]) == (False, 2, {"perception/yesno": 1})
    assert value["problems"] == [{"kind": "question_type", "count": 1, "first": [found(report)[0]]}]
