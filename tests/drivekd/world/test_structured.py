"""The world's structured answers: exact, in the schemas' words, and saying what the free answers say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from drivekd.runtime.answers.schemas import default_schemas, valid_answer
from drivekd.sample import CAPABILITIES, Capability
from drivekd.world import PROMPTS, Scene, WorldSettings, make_scene
from drivekd.world.picture.camera import make_camera
from drivekd.world.picture.labels import look
from drivekd.world.questions import Question, questions_of, records_of, without_answer
from drivekd.world.stated import STATED_TOPICS, stated_options

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


def test_it_says_what_the_free_answers_say() -> None:
    camera = make_camera("CAM_FRONT", WorldSettings().image_size_px)
    for seed in range(NUM_SCENES):
        scene = make_scene(seed)
        questions = questions_of(scene, look(scene, camera).labels)
        letters = {question.topic: question.answer[0] for question in questions}
        for question in questions:
            if question.structured is not None:
                stated = stated_options(question.capability, question.structured)
                assert tuple(stated) == STATED_TOPICS[question.capability]
                assert stated == {topic: letters[topic] for topic in stated}
        answers = {question.topic: question for question in questions}
        assert f"Reason: {(answers['action'].structured or {})['reason']}." in answers["action"].answer


SEEN = {"camera": "CAM_FRONT", "position": None}


@pytest.mark.parametrize(
    ("capability", "answer", "stated"),
    [
        ("planning", {"actions": None}, {"action": None}),
        ("planning", {"actions": ["yield"]}, {"action": None}),
        ("planning", {"actions": ["slow_down", "stop"]}, {"action": "B"}),
        ("reasoning", {"objects": None}, {"notice": None}),
        ("reasoning", {"objects": []}, {"notice": "E"}),
        ("reasoning", {"objects": [{"object": None}]}, {"notice": None}),
        ("reasoning", {"objects": [{"object": "a tram"}]}, {"notice": None}),
        ("perception", {"objects": None}, {"signal": None, "lead": None, "road": None}),
        ("perception", {"objects": []}, {"signal": "C", "lead": "C", "road": "A"}),
        (
            "perception",
            {
                "objects": [
                    {**SEEN, "category": "traffic_light", "status": "red"},
                    {**SEEN, "category": "traffic_light", "status": "green"},  # which?
                    {**SEEN, "category": "bus", "status": None},
                    {**SEEN, "category": "other", "status": "a puddle"},
                ]
            },
            {"signal": None, "lead": None, "road": None},
        ),
    ],
)
def test_what_is_not_stated_is_not_guessed(capability: Capability, answer: dict[str, Any], stated: dict[str, Any]) -> None:
    assert stated_options(capability, answer) == stated


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
