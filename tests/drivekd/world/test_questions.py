"""The built-in world's answers: exact, balanced, and never on a knife's edge."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from drivekd.world import COORDINATE_WORDS, PROMPTS, Scene, WorldSettings, bin_center, format_tag, make_scene, plan
from drivekd.world.picture.camera import make_camera
from drivekd.world.picture.labels import look
from drivekd.world.questions import ACTIONS, Question, questions_of
from drivekd.world.staging import situation_of

NUM_SCENES = 300


class Asked(NamedTuple):
    scene: Scene
    questions: list[Question]


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    """Many scenes with their questions, without rendering them."""
    camera = make_camera("CAM_FRONT", WorldSettings().image_size_px)
    scenes = [make_scene(seed) for seed in range(NUM_SCENES)]
    return [Asked(scene, questions_of(scene, look(scene, camera).labels)) for scene in scenes]


def test_actions_are_balanced(asked: list[Asked]) -> None:
    shares = Counter(plan(scene).action for scene, _ in asked)
    assert set(shares) == set(ACTIONS)
    for action, count in shares.items():
        assert 0.12 <= count / NUM_SCENES <= 0.32, (action, count)


def test_no_topic_is_won_by_its_commonest_answer(asked: list[Asked]) -> None:
    answers: dict[str, Counter[str]] = {}
    for _, questions in asked:
        for question in questions:
            if question.answer_form != "open":
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
