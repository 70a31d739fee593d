"""The built-in world: whole and repeatable files, exact and balanced answers, cues that survive 112 x 112 pixels."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from drivekd.data.sample import ANSWER_KINDS, CAMERAS, CAPABILITIES
from drivekd.errors import DataError, UsageError
from drivekd.world import (
    COORDINATE_WORDS,
    PROMPTS,
    SPLITS,
    Record,
    Scene,
    WorldSettings,
    bin_center,
    build_world,
    format_tag,
    make_scene,
    plan,
    render_frame,
)
from drivekd.world.assembly import signal_bottom_m, signal_position_m
from drivekd.world.camera import make_camera
from drivekd.world.labels import look
from drivekd.world.order import painter_order
from drivekd.world.questions import ACTIONS, Question, questions_of
from drivekd.world.road import Road
from drivekd.world.scene import DAYLIGHTS, WEATHERS
from drivekd.world.staging import situation_of
from drivekd.world.street import signal_lamp_height_m

SIZE_PX = (320, 180)
NUM_SCENES = 300
SMALL = WorldSettings(train_frames=12, labelled_frames=5, validation_frames=6, test_frames=6, workers=1, contact_sheet=False)
JSON_FILES = ("train.json", "unlabelled.json", "validation.json", "test.json")


class Asked(NamedTuple):
    scene: Scene
    questions: list[Question]


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    """Many scenes with their questions, without rendering them."""
    camera = make_camera("CAM_FRONT", SIZE_PX)
    scenes = [make_scene(seed) for seed in range(NUM_SCENES)]
    return [Asked(scene, questions_of(scene, look(scene, camera).labels)) for scene in scenes]


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


# Files


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
        assert record["question_type"] in CAPABILITIES and meta["kind"] in ANSWER_KINDS
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


def test_world_needs_no_torch() -> None:
    code = "import sys, drivekd.world; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Answers


def test_actions_are_balanced(asked: list[Asked]) -> None:
    shares = Counter(plan(scene).action for scene, _ in asked)
    assert set(shares) == set(ACTIONS)
    for action, count in shares.items():
        assert 0.12 <= count / NUM_SCENES <= 0.32, (action, count)


def test_no_topic_is_won_by_its_commonest_answer(asked: list[Asked]) -> None:
    answers: dict[str, Counter[str]] = {}
    for _, questions in asked:
        for question in questions:
            if question.kind != "open":
                answers.setdefault(question.topic, Counter())[question.answer.split(".")[0]] += 1
    assert set(answers) == {"signal", "lead", "road", "notice", "collision", "action", "lane"}
    for topic, counts in answers.items():
        assert max(counts.values()) / sum(counts.values()) <= 0.62, (topic, counts)


def test_answers_say_what_the_oracle_decides(asked: list[Asked]) -> None:
    for scene, questions in asked:
        answers = {question.topic: question.answer for question in questions}
        assert ACTIONS[plan(scene).action] in answers["action"]
        assert plan(scene).action == situation_of(scene.seed).action
        reaches = scene.lead is not None and scene.lead.rear_m / scene.ego_speed_mps < 4.0
        assert answers["collision"].startswith("Yes." if reaches else "No.")


def test_the_speed_decides_about_a_far_vehicle_and_a_curve(asked: list[Asked]) -> None:
    calm = [scene for scene, _ in asked if scene.signal != "red" and scene.crossing_pedestrian is None]
    far = [scene for scene in calm if scene.lead_state == "far" and scene.lead is not None and scene.lead.rear_m < 36.0]
    curves = [scene for scene in calm if scene.lead is None and scene.road.bend != "straight"]
    assert len(far) > 20 and len(curves) > 20
    for scene in far + curves:
        assert plan(replace(scene, ego_speed_mps=4)).action == "keep"
        assert plan(replace(scene, ego_speed_mps=15)).action == "slow"


def test_nothing_hangs_on_a_knife_edge(asked: list[Asked]) -> None:
    for scene, _ in asked:
        if scene.lead is not None:
            assert not 12.5 < scene.lead.rear_m < 21.5
            assert abs(scene.lead.rear_m / scene.ego_speed_mps / 4.0 - 1.0) > 0.08


def test_questions_about_time_name_the_speed(asked: list[Asked]) -> None:
    for scene, questions in asked:
        for question in questions:
            if question.topic in {"notice", "collision", "action", "lane"}:
                assert f"drives at {scene.ego_speed_mps} m/s." in question.text


def test_prompts_are_the_training_questions(asked: list[Asked]) -> None:
    for scene, questions in asked[:20]:
        texts = {question.text for question in questions}
        assert {prompt.format(ego_speed_mps=scene.ego_speed_mps) for prompt in PROMPTS.values()} <= texts


def test_tags_are_printed_in_bin_centres(asked: list[Asked]) -> None:
    assert len(set(COORDINATE_WORDS)) == 100 and COORDINATE_WORDS[0] == "0.005" and COORDINATE_WORDS[-1] == "0.995"
    for value in np.linspace(-0.1, 1.1, 1000).tolist():
        assert bin_center(bin_center(value)) == bin_center(value)
        assert abs(bin_center(value) - min(1.0, max(0.0, value))) <= 0.005 + 1e-9  # half a bin
    assert format_tag(1, "CAM_FRONT", 0.4871, 0.62) == "<c1,CAM_FRONT,0.485,0.625>"
    tags = [re.findall(r"<c\d,CAM_\w+,([\d.]+),([\d.]+)>", q.text + q.answer) for _, qs in asked for q in qs]
    words = {word for found in tags for pair in found for word in pair}
    assert len(words) > 30 and words <= set(COORDINATE_WORDS)


# Pictures


def test_boxes_hold_their_pixels() -> None:
    camera = make_camera("CAM_FRONT", SIZE_PX)
    checked = 0
    for seed in range(40):
        sight = look(make_scene(seed), camera)
        for label in sight.labels:
            rows, columns = np.nonzero(sight.ids == label.actor + 1)
            assert len(rows) == label.visible_px
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            slack = (seen - label.box_px) * [1, 1, -1, -1]
            assert slack.min() >= 0
            if label.visibility == 1.0:
                assert slack.max() == 0
                checked += 1
    assert checked > 50


def test_boxes_lie_on_the_painted_vehicle() -> None:
    """Repaint the vehicle ahead: what changes in the picture is inside its box, and fills much of it."""
    checked = 0
    for seed in range(60):
        scene = make_scene(seed)
        if scene.lead is None or scene.lead_state != "near" or scene.lead.kind == "truck" or scene.weather == "rain":
            continue
        index = scene.actors.index(scene.lead)
        other = replace(scene.lead, color="yellow" if scene.lead.color != "yellow" else "blue")
        repainted = replace(scene, actors=(*scene.actors[:index], other, *scene.actors[index + 1 :]))
        before, labels = render_frame(scene, "CAM_FRONT", SIZE_PX)
        after, _ = render_frame(repainted, "CAM_FRONT", SIZE_PX)
        rows, columns = np.nonzero(np.abs(before.astype(int) - after).max(axis=2) > 12)
        left, top, right, bottom = next(label.box_px for label in labels if label.actor == index)
        assert columns.min() >= left - 2 and columns.max() <= right + 2 and rows.min() >= top - 2 and rows.max() <= bottom + 2
        assert len(rows) > 0.2 * (right - left) * (bottom - top)
        checked += 1
    assert checked >= 10


@dataclass(frozen=True)
class _Lamp:
    """Colour [3] of a lamp's centre at 112 x 112, and the widest run of pixels there that share its hue."""

    color: np.ndarray
    width_px: int


def _lamp(picture: np.ndarray, scene: Scene, name: str) -> _Lamp:
    small = np.asarray(Image.fromarray(picture).resize((112, 112), Image.Resampling.BICUBIC), int)
    assert scene.signal_m is not None
    point = signal_position_m(scene, signal_lamp_height_m(name, signal_bottom_m(scene.signal_m)))
    camera = make_camera("CAM_FRONT", SIZE_PX)
    x_px, y_px = camera.to_pixels(camera.to_camera(point)) * 112 / np.array(SIZE_PX)
    row = small[int(y_px)]
    own, other = (0, 1) if name == "red" else (1, 0)
    hue = row[:, own] - row[:, other] > 50
    window = hue[max(0, int(x_px) - 6) : int(x_px) + 7]
    return _Lamp(row[int(x_px)], int(window.sum()))


def _scenes_with_signals(state: str) -> list[Scene]:
    """Two scenes for each daylight and weather."""
    by_look: dict[tuple[str, str], list[int]] = {}
    for seed in range(400, 1400):
        situation = situation_of(seed)
        if situation.signal == state:
            by_look.setdefault((situation.daylight, situation.weather), []).append(seed)
    assert len(by_look) == len(DAYLIGHTS) * len(WEATHERS)
    return [make_scene(seed) for seeds in by_look.values() for seed in seeds[:2]]


@pytest.mark.parametrize(("state", "unlit", "own", "other"), [("red", "green", 0, 1), ("green", "red", 1, 0)])
def test_signals_are_legible_at_112_pixels(state: str, unlit: str, own: int, other: int) -> None:
    for scene in _scenes_with_signals(state):
        picture, _ = render_frame(scene, "CAM_FRONT", SIZE_PX)
        lit, dark = _lamp(picture, scene, state), _lamp(picture, scene, unlit)
        where = (scene.seed, scene.daylight, scene.weather, lit, dark)
        assert lit.color[own] > 150 and lit.color[own] - lit.color[other] > 90, where
        assert lit.width_px >= 3, where
        assert lit.color[own] - dark.color[own] > 60 and abs(dark.color[own] - dark.color[other]) < 60, where


def test_night_is_darker_than_day() -> None:
    scene = make_scene(3)
    means = [render_frame(replace(scene, daylight=light), "CAM_FRONT", SIZE_PX)[0].mean() for light in DAYLIGHTS]
    assert means == sorted(means, reverse=True)


def test_painter_order_matches_the_first_thing_that_a_ray_meets() -> None:
    """Random disjoint rectangles, some long: along every ray from the eye, nearer ones are painted later."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        footprints = _disjoint_rectangles(rng)
        rank = np.argsort(painter_order(footprints, (0.0, 0.0)))
        for angle in rng.uniform(-np.pi, np.pi, 60).tolist():
            hits_m = _hits_m(footprints, angle)
            painted = rank[np.argsort(hits_m)][: np.isfinite(hits_m).sum()].tolist()
            assert painted == sorted(painted, reverse=True)


def _disjoint_rectangles(rng: np.random.Generator) -> np.ndarray:
    """Rows of vehicles of any length in seven lanes, slightly turned; none on the eye."""
    rectangles = []
    for lane in (-9.0, -6.0, -3.0, 3.0, 6.0, 9.0):
        x_m = -40.0
        while x_m < 40.0:
            length_m = float(rng.uniform(0.5, 14.0))
            center, turn = np.array([x_m + length_m / 2, lane]), float(rng.uniform(-0.03, 0.03))
            corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length_m / 2, float(rng.uniform(0.3, 1.1))]
            rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            rectangles.append(corners @ rotation + center)
            x_m += length_m + float(rng.uniform(0.5, 12.0))
    return np.array(rectangles)


def _hits_m(footprints: np.ndarray, angle: float) -> np.ndarray:
    """Distance from the origin to each rectangle along a ray, [P]; inf where it misses."""
    across = footprints @ [-np.sin(angle), np.cos(angle)]  # [P, 4], distance of each corner from the ray's line
    along = footprints @ [np.cos(angle), np.sin(angle)]
    next_across, next_along = np.roll(across, -1, axis=1), np.roll(along, -1, axis=1)
    crosses = (across > 0.0) != (next_across > 0.0)
    share = across / np.where(crosses, across - next_across, 1.0)
    met = along + share * (next_along - along)
    hits_m: np.ndarray = np.where(crosses & (met > 0.0), met, np.inf).min(axis=1)
    return hits_m


@pytest.mark.parametrize("curvature_per_m", [0.0, 1 / 45.0, -1 / 70.0])
def test_road_points_come_back(curvature_per_m: float) -> None:
    road = Road(num_lanes=3, ego_lane=1, curvature_per_m=curvature_per_m, curve_start_m=7.0)
    for s_m in (-30.0, 0.0, 6.0, 8.0, 25.0, 60.0):
        for d_m in (-9.0, 0.0, 3.5):
            x_m, y_m = road.to_world(s_m, d_m)
            back = road.from_world(np.array([x_m]), np.array([y_m]))
            assert np.allclose(np.ravel(back), [s_m, d_m], atol=1e-6)  # metres; float64 rounding
    assert road.to_world(60.0, 0.0)[1] * curvature_per_m >= 0.0  # positive curvature bends to the left
