"""A split shares no scene, holds every record once, comes near its shares, and is the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_files import QUESTIONS, SCENES, write_drivelm, write_pictures

from drivekd.data.checks.overlap import overlap
from drivekd.data.readers import read_samples
from drivekd.data.writers.split import split_file
from drivekd.errors import DataError, UsageError


def record(number: int, capability: str = "perception", image: str = "", **meta: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"<image>What is {number}?"}, {"role": "assistant", "content": f"It is {number}."}]
    kept = {"own_key": number, "meta": {**meta, "ego_speed_mps": 3}}
    return {"messages": messages, "images": [image or f"images/{number}.jpg"], "question_type": capability, **kept}


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "all.json"
    path.write_text(json.dumps(records))
    return path


def many(num_scenes: int, seed: int = 0) -> list[dict[str, Any]]:
    """Scenes of 1 to 20 questions; one in five scenes has planning questions."""
    rng = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for scene in range(num_scenes):
        for _ in range(rng.integers(1, 21)):
            capability = "planning" if scene % 5 == 0 else "perception"
            records.append(record(len(records), capability, scene=f"s{scene}"))
    return [records[n] for n in rng.permutation(len(records))]


def scenes(path: Path) -> set[str]:
    return {sample.scene for sample in read_samples(path)}


@pytest.mark.parametrize("seed", range(4))
def test_parts_share_no_scene_lose_nothing_and_come_near_their_shares(tmp_path: Path, seed: int) -> None:
    records = many(60, seed)
    report = split_file(write(tmp_path, records), tmp_path / "out", test=0.1, validation=0.2, seed=seed)
    names = ("train.json", "validation.json", "test.json")
    parts = [json.loads((tmp_path / "out" / name).read_text()) for name in names]
    assert sorted(r["own_key"] for part in parts for r in part) == list(range(len(records)))
    assert tuple(report.records) == names
    found = [scenes(tmp_path / "out" / name) for name in names]
    assert sum(map(len, found)) == len(set.union(*found)) == 60
    for part, share in zip(parts, (0.7, 0.2, 0.1), strict=True):
        assert abs(len(part) / len(records) - share) < 0.04  # a scene is up to 3 % of the questions
        assert {r["question_type"] for r in part} == {"perception", "planning"}
    assert overlap(tmp_path / "out" / "train.json", tmp_path / "out" / "test.json").disjoint


def test_a_seed_is_one_split_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    records = many(30)
    for name, order in (("a", records), ("b", records[::-1]), ("c", records)):
        split_file(write(tmp_path, order), tmp_path / name, test=0.2, seed=0 if name != "c" else 1)
    assert scenes(tmp_path / "a" / "test.json") == scenes(tmp_path / "b" / "test.json") != scenes(tmp_path / "c" / "test.json")


def test_what_is_not_read_comes_along_and_pictures_are_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.jpg").touch()
    split_file(write(tmp_path, [record(n, scene=f"s{n}") for n in range(4)]), tmp_path / "out", test=0.25)
    for name in ("train.json", "test.json"):
        assert all(sample.images[0].is_file() for sample in read_samples(tmp_path / "out" / name))
    (kept,) = json.loads((tmp_path / "out" / "test.json").read_text())
    assert kept["meta"]["ego_speed_mps"] == 3 and isinstance(kept["own_key"], int)


def test_without_scenes_frames_and_shared_pictures_keep_questions_together(tmp_path: Path) -> None:
    records = [record(n, image=f"{n // 2}.jpg", **({"frame": f"f{n // 4}"} if n < 40 else {})) for n in range(60)]
    report = split_file(write(tmp_path, records), tmp_path / "out", test=0.3)
    assert report.grouped_by == {"frame": 40, "pictures": 20}
    assert sum(report.groups.values()) == 20
    assert overlap(tmp_path / "out" / "train.json", tmp_path / "out" / "test.json").image_paths == ()
    assert "questions kept together: 40 by frame, 20 by pictures" in report.notes


@pytest.mark.parametrize("num_scenes", [2, 3])
def test_few_scenes_leave_no_part_empty(tmp_path: Path, num_scenes: int) -> None:
    records = [record(n, scene=f"s{n % num_scenes}") for n in range(40)]
    report = split_file(write(tmp_path, records), tmp_path / "out", test=0.1, validation=0.1 if num_scenes == 3 else 0)
    assert set(report.groups.values()) == {1}


def test_a_rare_capability_is_in_each_part_where_scenes_allow_it(tmp_path: Path) -> None:
    records = [record(n, "planning" if n in (0, 1) else "perception", scene=f"s{n}") for n in range(40)]
    report = split_file(write(tmp_path, records), tmp_path / "out", test=0.1)
    assert {found["planning"] for found in report.records.values()} == {1}
    rarer = split_file(write(tmp_path, records[1:]), tmp_path / "rarer", test=0.1)
    assert [note for note in rarer.notes if "has no planning question" in note]


@pytest.mark.parametrize("seed", range(5))
def test_a_capability_of_few_questions_in_large_scenes_is_in_each_part(tmp_path: Path, seed: int) -> None:
    records = [record(n, scene=f"s{n % 40}") for n in range(800)]
    records += [record(800 + n, "planning", scene=f"s{n}") for n in range(2)]
    report = split_file(write(tmp_path, records), tmp_path / "out", test=0.1, seed=seed)
    assert {found["planning"] for found in report.records.values()} == {1}


@pytest.mark.parametrize("seed", range(5))
def test_a_scene_larger_than_a_part_is_trained_on(tmp_path: Path, seed: int) -> None:
    records = [record(n, "planning" if n < 60 else "perception", scene="large" if n < 120 else f"s{n // 10}") for n in range(240)]
    report = split_file(write(tmp_path, records), tmp_path / "out", test=0.1, seed=seed)
    assert "large" in scenes(tmp_path / "out" / "train.json")
    assert "test.json has no planning question" in report.notes


def test_questions_that_share_a_picture_by_way_of_others_stay_together(tmp_path: Path) -> None:
    chain = [["a.jpg", "b.jpg"], ["c.jpg", "d.jpg"], ["b.jpg", "c.jpg"], ["e.jpg", "f.jpg"]]
    records = [{**record(n), "images": images} for n, images in enumerate(chain)]
    for made in records:
        made["messages"][0]["content"] = "<image>" + made["messages"][0]["content"]
    report = split_file(write(tmp_path, records), tmp_path / "out", test=0.25)
    assert (report.groups, sum(report.records["test.json"].values())) == ({"test.json": 1, "train.json": 1}, 1)


@pytest.mark.parametrize("seed", range(4))
def test_of_two_scenes_the_smaller_is_the_test(tmp_path: Path, seed: int) -> None:
    records = [record(n, scene="large" if n < 60 else "small") for n in range(100)]
    split_file(write(tmp_path, records), tmp_path / "out", test=0.4, seed=seed)
    assert scenes(tmp_path / "out" / "test.json") == {"small"}


def test_drivelm_is_split_as_it_comes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "nuscenes")
    report = split_file(write_drivelm(tmp_path / "all.json"), tmp_path / "data", test=0.4)
    parts = {name: read_samples(tmp_path / "data" / name) for name in ("train.json", "test.json")}
    assert sum(map(len, parts.values())) == len(QUESTIONS) * sum(map(len, SCENES.values()))
    assert report.groups == {"train.json": 1, "test.json": 1}
    assert all(image.is_file() for part in parts.values() for sample in part for image in sample.images)


@pytest.mark.parametrize(("test", "validation"), [(0, 0), (1, 0), (0.5, 0.5), (0.1, -0.1), (-0.1, 0.2), (float("nan"), 0)])
def test_shares_that_leave_nothing_are_refused(tmp_path: Path, test: float, validation: float) -> None:
    with pytest.raises(UsageError, match="shares: expected --test above 0"):
        split_file(write(tmp_path, many(9)), tmp_path / "out", test=test, validation=validation)


def test_nothing_is_written_over_or_half_written(tmp_path: Path) -> None:
    path = write(tmp_path, [record(n, scene="only") for n in range(4)])
    with pytest.raises(DataError, match=r"2 files need as many scenes .*; the file has 1"):
        split_file(path, tmp_path / "out", test=0.5)
    (tmp_path / "train.json").write_text("mine")
    with pytest.raises(UsageError, match=r"train\.json is there already"):
        split_file(path, tmp_path, test=0.5)
    with pytest.raises(DataError, match=r"record 5: question_type: .*--fix leaves out"):
        split_file(write(tmp_path, [*many(3)[:4], record(4, "essay")]), tmp_path / "out", test=0.5)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "train.json").read_text() == "mine"
