"""What two files share is found by scene, frame, path, name and content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_fixtures import Run
from record_files import SCENES, write_descriptions, write_drivelm, write_pictures

from drivekd.data.checks.overlap import overlap
from drivekd.errors import DataError

NUSCENES = "n015-2018-08-03-15-00-36+0800__CAM_FRONT__1533280042612460.jpg"


def records(folder: Path, image: str, content: bytes | None = None, **meta: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(content)
    path = folder / "records.json"
    path.write_text(json.dumps([{"messages": [], "images": [image], "question_type": "planning", "meta": meta}]))
    return path


def shared(a: Path, b: Path) -> dict[str, tuple[str, ...]]:
    report = overlap(a, b)
    names = ("scenes", "frames", "image_paths", "image_names", "image_contents")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def test_different_files_are_disjoint(tmp_path: Path) -> None:
    a = records(tmp_path / "a", "000001.jpg", b"one", scene="train-1", frame="f1")
    b = records(tmp_path / "b", "000001.jpg", b"two", scene="test-1", frame="f2")
    assert overlap(a, b).disjoint
    assert dict(overlap(a, b).rows)["image names"].startswith("not compared: "), "a running number is no trace"


def test_empty_scenes_are_not_shared(tmp_path: Path) -> None:
    assert shared(records(tmp_path / "a", "x.jpg", scene=""), records(tmp_path / "b", "y.jpg")) == {}


def test_scenes_and_frames(tmp_path: Path) -> None:
    a = records(tmp_path / "a", "1.jpg", scene="s", frame="f")
    b = records(tmp_path / "b", "2.jpg", scene="s", frame="f")
    assert shared(a, b) == {"scenes": ("s",), "frames": ("f",)}
    assert not overlap(a, b).disjoint


def test_a_record_that_says_a_key_twice_leaks_as_well(tmp_path: Path) -> None:
    a = records(tmp_path / "a", "1.jpg", scene="s", frame="f")
    b = records(tmp_path / "b", "2.jpg", scene="s", frame="f")
    b.write_text(b.read_text().replace('"scene": "s"', '"scene": "s", "scene": "s"'))
    assert shared(a, b) == {"scenes": ("s",), "frames": ("f",)}


@pytest.mark.parametrize("name", [NUSCENES, "9afb9daf-81ca742d.jpg"])
def test_names_given_once_in_the_world_are_a_trace(name: str, tmp_path: Path) -> None:
    assert shared(records(tmp_path / "a", name), records(tmp_path / "b", f"other/{name}")) == {"image_names": (name,)}


def test_paths_are_compared_resolved(tmp_path: Path) -> None:
    a = records(tmp_path / "a", "1.jpg")
    b = records(tmp_path / "b", "../a/1.jpg")
    assert shared(a, b) == {"image_paths": (str(tmp_path / "a/1.jpg"),)}


def test_contents_are_compared_under_other_names(tmp_path: Path) -> None:
    a = records(tmp_path / "a", "1.jpg", b"same bytes", scene="s1")
    b = records(tmp_path / "b", "2.jpg", b"same bytes", scene="s2")
    assert shared(a, b) == {"image_contents": (f"{tmp_path / 'a/1.jpg'} = {tmp_path / 'b/2.jpg'}",)}
    assert overlap(a, records(tmp_path / "c", "3.jpg", b"same size!")).disjoint


def test_formats_are_compared_across(tmp_path: Path) -> None:
    paths = {"CAM_FRONT": NUSCENES}
    drivelm: Any = {"s": {"key_frames": {"f": {"QA": {"planning": [{"Q": "What?", "A": "Go."}]}, "image_paths": paths}}}}
    drivebench = [{"scene_token": "s", "frame_token": "f", "question_type": "planning", "question": "What?", "image_path": paths}]
    descriptions = {"s": {"key_frames": {"f": {"key_object_infos": {}}}}}
    files = []
    for name, value in (("a", drivelm), ("b", drivebench), ("c", descriptions)):
        files.append(tmp_path / name / "file.json")
        files[-1].parent.mkdir()
        files[-1].write_text(json.dumps(value))
    assert shared(files[0], files[1]) == {"scenes": ("s",), "frames": ("f",), "image_names": (NUSCENES,)}
    assert shared(files[1], files[2]) == {"scenes": ("s",), "frames": ("f",)}


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").touch()
    with pytest.raises(DataError, match=r"x\.json: file is empty"):
        overlap(tmp_path / "x.json", tmp_path / "x.json")


def test_the_leak_of_drivelm_into_drivebench(tmp_path: Path) -> None:
    """One scene of two, with one frame of its own and one of DriveLM's."""
    drivelm = write_drivelm(tmp_path / "v1_1_train_nus.json")
    drivebench = {"scene-7b": ("frame-22", "frame-99"), "scene-9c": ("frame-90",)}
    report = overlap(drivelm, write_descriptions(tmp_path / "visual_description.json", drivebench))
    assert (report.scenes, report.frames) == (("scene-7b",), ("frame-22",))
    assert not (report.image_paths or report.image_names or report.image_contents)


def test_two_files_about_the_same_frames_share_all_photographs(tmp_path: Path) -> None:
    write_pictures(tmp_path / "nuscenes")
    train = write_drivelm(tmp_path / "train.json")
    report = overlap(train, write_drivelm(tmp_path / "test.json", topics=("planning",)))
    assert report.scenes == tuple(SCENES)
    assert report.frames == tuple(frame for frames in SCENES.values() for frame in frames)
    assert len(report.image_paths) == len(report.image_names) == len(report.image_contents) == 54


# --- what could not be compared -------------------------------------------------------------------------------------


def asked(folder: Path, image: str, question: str = "What does the light show?") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    messages = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": "Red."}]
    path = folder / "records.json"
    path.write_text(json.dumps([{"messages": messages, "images": [image], "question_type": "perception"}]), encoding="utf-8")
    return path


def test_without_pictures_the_same_questions_are_told_and_nothing_is_called_0(tmp_path: Path, run: Run) -> None:
    a, b = asked(tmp_path / "a", "here/1.jpg"), asked(tmp_path / "b", "elsewhere/1.jpg")
    report = overlap(a, b)
    rows = dict(report.rows)
    assert (report.disjoint, report.comparable, report.questions) == (True, False, 1)
    assert rows["question texts (alone no leak)"] == "1 same questions, first 'What does the light show?'"
    assert rows["pictures found"] == "0 of 1 and 0 of 1"
    for name in ("scenes", "frames", "image names", "image contents"):
        assert rows[name].startswith("not compared: neither file "), name
    code, out, err = run("data", "overlap", a, b)
    assert (code, "nothing could be compared" in err, "picture that was found; give --image-root" in " ".join(out.split())) == (
        1,
        True,
        True,
    )


def test_each_side_has_its_own_image_root(tmp_path: Path, run: Run) -> None:
    for side, name in (("x", "here/1.jpg"), ("y", "elsewhere/1.jpg")):
        (tmp_path / side / name).parent.mkdir(parents=True)
        (tmp_path / side / name).write_bytes(b"the same picture")
    a, b = asked(tmp_path / "a", "here/1.jpg"), asked(tmp_path / "b", "elsewhere/1.jpg")
    report = overlap(a, b, image_root_a=tmp_path / "x", image_root_b=tmp_path / "y")
    assert report.image_contents == (f"{tmp_path / 'x/here/1.jpg'} = {tmp_path / 'y/elsewhere/1.jpg'}",)
    code, _, err = run("data", "overlap", a, b, "--image-root-a", tmp_path / "x", "--image-root-b", tmp_path / "y")
    assert (code, "overlap" in err) == (1, True)
    half = overlap(a, b, image_root_a=tmp_path / "x")
    assert dict(half.rows)["image contents"] == f"not compared: {b} has no picture that was found; give --image-root"


def test_a_question_in_pixels_is_the_same_question(tmp_path: Path) -> None:
    pixels = asked(tmp_path / "a", "1.jpg", "Is <c1,CAM_BACK,800.0,450.0> near?")
    parts = asked(tmp_path / "b", "2.jpg", "Is <c1,CAM_BACK,0.5000,0.5000> near?")
    assert overlap(pixels, parts).questions == 1


def test_predictions_and_nuscenes_qa_are_compared_by_what_they_name(tmp_path: Path) -> None:
    drivelm = write_drivelm(tmp_path / "drivelm.json")
    output = [{"id": "scene-7a_frame-10_3", "question": "<image>\nWhat is safe here?", "answer": "Brake."}]
    (tmp_path / "output.json").write_text(json.dumps(output), encoding="utf-8")
    report = overlap(drivelm, tmp_path / "output.json")
    assert (report.scenes, report.frames, report.first_question) == (("scene-7a",), ("frame-10",), "What is safe here?")
    questions = {"questions": [{"sample_token": "frame-11", "question": "Is it wet?", "answer": "no"}]}
    (tmp_path / "qa.json").write_text(json.dumps(questions), encoding="utf-8")
    assert overlap(drivelm, tmp_path / "qa.json").frames == ("frame-11",)
