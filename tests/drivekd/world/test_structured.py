"""The world's structured answers: exact, in the schemas' words, and saying what the free answers say."""

from __future__ import annotations

import json

import pytest

from drivekd.runtime.answers.schemas import default_schemas, valid_answer
from drivekd.sample import CAPABILITIES
from drivekd.world import PROMPTS, Scene, WorldSettings, make_scene
from drivekd.world.picture.camera import make_camera
from drivekd.world.picture.labels import look
from drivekd.world.questions import Question, questions_of, records_of, without_answer

SCHEMAS = default_schemas(("CAM_FRONT",))
NUM_SCENES = 150


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, dict[str, Question]]]:
    """Of each scene, without rendering it: the questions that have a structured answer, by capability."""
    camera = make_camera("CAM_FRONT", WorldSettings().image_size_px)
    scenes = [make_scene(seed) for seed in range(NUM_SCENES)]
    questions = [questions_of(scene, look(scene, camera).labels) for scene in scenes]
    return [
        (scene, {question.capability: question for question in found if question.structured is not None})
        for scene, found in zip(scenes, questions, strict=True)
    ]


def test_the_default_question_of_each_capability_has_one_that_fits_its_schema(
    asked: list[tuple[Scene, dict[str, Question]]],
) -> None:
    for scene, questions in asked:
        assert tuple(questions) == CAPABILITIES
        for capability, question in questions.items():
            assert question.text == PROMPTS[question.capability].format(ego_speed_mps=scene.ego_speed_mps)
            assert valid_answer(SCHEMAS[capability], question.structured) is None


def test_it_says_what_the_free_answer_says(asked: list[tuple[Scene, dict[str, Question]]]) -> None:
    letters = dict(zip(("keep_speed", "slow_down", "stop", "change_lane_left", "change_lane_right"), "ABCDE", strict=True))
    causes = {"traffic signal": "A", "vehicle ahead": "B", "pedestrian": "C", "curve of the road": "D"}
    for scene, questions in asked:
        planned, noticed, seen = (questions[name].structured or {} for name in ("planning", "reasoning", "perception"))
        assert questions["planning"].answer.startswith(f"{letters[planned['actions'][0]]}. ")
        assert f"Reason: {planned['reason']}." in questions["planning"].answer
        first = noticed["objects"][0]["object"] if noticed["objects"] else None
        assert questions["reasoning"].answer[0] == causes.get(first, "E")
        found = {one["category"]: one["status"] for one in seen["objects"]}
        assert found.get("traffic_light", "none") == scene.signal
        vehicles = [status for category, status in found.items() if category in ("car", "van", "truck", "bus")]
        assert vehicles == ([] if scene.lead is None else [scene.lead_state])
        assert ("pedestrian" in found) == (scene.crossing_pedestrian is not None)
        assert (found.get("other") is None) == (scene.road.bend == "straight")


def test_a_position_is_the_middle_of_the_box_in_the_picture(asked: list[tuple[Scene, dict[str, Question]]]) -> None:
    width_px, height_px = WorldSettings().image_size_px
    positions = [one["position"] for _, q in asked for one in (q["perception"].structured or {})["objects"] if one["position"]]
    assert len(positions) > NUM_SCENES // 2
    assert all(0 <= x < width_px and 0 <= y < height_px for x, y in positions)


def test_records_carry_it_and_unlabelled_ones_do_not() -> None:
    scene = make_scene(0)
    records = records_of(scene, look(scene, make_camera("CAM_FRONT", (320, 180))).labels, {"CAM_FRONT": "a.jpg"}, scene_name="s")
    assert sum("structured" in json.loads(json.dumps(record)) for record in records) == len(CAPABILITIES)
    assert not any("structured" in without_answer(record) for record in records)
