"""The built-in world's files: whole, repeatable, in the Drive-KD format, and nothing left of a build that broke."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from drivekd.errors import DataError, UsageError
from drivekd.sample import ANSWER_FORMS, CAMERAS, CAPABILITIES
from drivekd.world import SPLITS, Record, WorldSettings, build_world

SMALL = WorldSettings(train_frames=12, labelled_frames=5, validation_frames=6, test_frames=6, workers=1, contact_sheet=False)
JSON_FILES = ("train.json", "unlabelled.json", "validation.json", "test.json")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "out"
    build_world(out, SMALL)
    return out


def _read(path: Path) -> list[Record]:
    records: list[Record] = json.loads(path.read_text())
    return records


def _all_records(world: Path) -> list[Record]:
    return [record for name in JSON_FILES for record in _read(world / name)]


def _tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_settings_give_same_bytes_for_any_number_of_workers(world: Path, tmp_path: Path) -> None:
    build_world(tmp_path / "again", SMALL)
    build_world(tmp_path / "two_workers", replace(SMALL, workers=2))
    assert _tree(tmp_path / "again") == _tree(world)
    assert _tree(tmp_path / "two_workers") == _tree(world)


def test_another_seed_gives_other_pictures(world: Path, tmp_path: Path) -> None:
    build_world(tmp_path / "other", replace(SMALL, seed=1, train_frames=5, validation_frames=0, test_frames=0))
    name = "samples/CAM_FRONT/train-000000.jpg"
    assert (tmp_path / "other" / name).read_bytes() != (world / name).read_bytes()


def test_splits_and_worlds_never_share_a_scene(world: Path) -> None:
    full = [replace(SMALL, seed=seed, train_frames=10**6, validation_frames=10**6, test_frames=10**6) for seed in (0, 1)]
    ranges = [settings.scene_seeds(split) for settings in full for split in SPLITS]
    for one, other in pairwise(ranges):
        assert one.stop <= other.start
    scenes = {name: {record["meta"]["scene"] for record in _read(world / name)} for name in JSON_FILES}
    assert sum(len(names) for names in scenes.values()) == len(set().union(*scenes.values())) == 24


def test_records_keep_the_drive_kd_format(world: Path) -> None:
    for record in _all_records(world):
        question, meta = record["messages"][0], record["meta"]
        assert question["role"] == "user"
        assert question["content"].count("<image>") == len(record["images"]) == len(meta["cameras"]) >= 1
        assert question["content"].startswith("<image>" * len(record["images"]))
        assert record["question_type"] in CAPABILITIES and meta["kind"] in ANSWER_FORMS
        for path in record["images"]:
            assert Image.open(world / path).size == SMALL.image_size_px
        if len(record["messages"]) == 2:
            assert record["messages"][1]["role"] == "assistant"
            _check_answer(meta["kind"], question["content"], record["messages"][1]["content"])


def _check_answer(kind: str, question: str, answer: str) -> None:
    if kind == "choice" or "Options:" in question:
        options = question.split("ptions: ")[1]
        option = re.match(r"[A-E]\. [^.]+\.", answer)
        assert option is not None and option.group() in options, (options, answer)
    elif kind == "yesno":
        assert answer.startswith(("Yes.", "No."))
    else:
        facts = ("Signal", "Vehicle ahead", "Pedestrian", "Road", "Left lane", "Right lane")
        assert re.fullmatch(" ".join(rf"{fact}: .+\." for fact in facts), answer)


def test_unlabelled_records_hold_no_answer(world: Path) -> None:
    unlabelled, train = _read(world / "unlabelled.json"), _read(world / "train.json")
    assert {len(record["messages"]) for record in unlabelled} == {1}
    assert {len(record["messages"]) for record in train} == {2}
    assert {record["meta"]["scene"] for record in train} == {f"train-{index:06d}" for index in range(5)}
    assert {record["meta"]["scene"] for record in unlabelled} == {f"train-{index:06d}" for index in range(5, 12)}


def test_manifest_names_what_is_there(world: Path) -> None:
    manifest = json.loads((world / "manifest.json").read_text())
    assert manifest["records"] == {name: len(_read(world / name)) for name in JSON_FILES}
    assert manifest["images"] == len(list(world.rglob("*.jpg"))) == 24
    assert set(manifest["sha256"]) == set(JSON_FILES)
    assert sum(manifest["action_shares"].values()) == pytest.approx(1.0, abs=1e-3)  # shares have four decimals


def test_six_cameras_and_contact_sheet(tmp_path: Path) -> None:
    out = tmp_path / "six"
    build_world(out, WorldSettings(1, 1, 0, 0, cameras=CAMERAS, image_size_px=(192, 108), workers=1))
    by_topic = {record["meta"]["topic"]: record for record in _read(out / "train.json")}
    assert by_topic["action"]["meta"]["cameras"] == list(CAMERAS)
    assert by_topic["signal"]["meta"]["cameras"] == ["CAM_FRONT"]
    assert len(by_topic["object"]["images"]) == 1
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width == 1920


def test_refuses_a_directory_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        build_world(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left on device"), DataError)],
)
def test_nothing_is_left_of_a_broken_build(tmp_path: Path, failure: BaseException, expected: type[BaseException]) -> None:
    def fail(done: int, total: int) -> None:
        if done == 3:
            raise failure

    with pytest.raises(expected):
        build_world(tmp_path / "out", SMALL, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match=r"needs about [\d.]+ MB"):
        build_world(tmp_path / "out", SMALL)


@pytest.mark.parametrize(
    "bad",
    [
        {"cameras": ("CAM_BACK",)},
        {"cameras": ("CAM_FRONT", "CAM_TOP")},
        {"labelled_frames": 3000},
        {"test_frames": -1},
        {"image_size_px": (640, 100)},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        WorldSettings(**bad)  # type: ignore[arg-type]


@pytest.mark.e2e
def test_world_needs_no_torch() -> None:
    code = "import sys, drivekd.world; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
