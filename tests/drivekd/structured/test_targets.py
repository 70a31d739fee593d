"""A record's structured answer: what the record says, null for what it does not, and always what a grammar lets a model write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_run import make_tokenizer

from drivekd.errors import DataError
from drivekd.runtime.answers.grammar import Grammars
from drivekd.runtime.answers.schemas import default_schemas, valid_answer
from drivekd.sample import CAMERAS, CAPABILITIES, Capability, Sample
from drivekd.structured.pictures import PictureSizes
from drivekd.structured.targets import structured_target, taught_samples

SCHEMAS = default_schemas(())
STATUS = "What is the moving status of object <c1,CAM_BACK,0.5000,0.2500>?"
NOTICE = "What object should the ego vehicle notice first when it goes on? What object should the ego vehicle notice second?"
OBJECTS = "What are the important objects in the current scene? Those objects will be considered for the driving decision."
ELEMENTS = "Identify all the traffic elements in the front view, categorize them, and predict the bounding box around each one."
ACTIONS = (
    "What actions could the ego vehicle take based on <c1,CAM_FRONT,0.5,0.5>? Why take this action and what's the probability?"
)
WHAT_NOW = "What is the most possible action of the ego vehicle? Options: A. Turn left. B. Drive backward. C. Brake to a stop."


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each camera; the rear one has another size, and lies on its side until EXIF turns it."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = {camera: folder / f"{camera}.jpg" for camera in CAMERAS}
    exif = Image.Exif()
    exif[274] = 6
    for camera, path in paths.items():
        if camera == "CAM_BACK":
            Image.new("RGB", (40, 80)).save(path, exif=exif)  # seen as 80 x 40
        else:
            Image.new("RGB", (160, 90)).save(path)
    return paths


def sample(
    pictures: dict[str, Path], capability: Capability, question: str, answer: str | None, cameras: Sequence[str] = CAMERAS
) -> Sample:
    shown = tuple(pictures[camera] for camera in cameras)
    return Sample("a.json, record 7", capability, question, answer, shown, cameras=tuple(cameras))


def target(one: Sample) -> Any:
    text = structured_target(one, SCHEMAS[one.capability], PictureSizes())
    if text is None:
        return None
    found = json.loads(text)
    assert valid_answer(SCHEMAS[one.capability], found) is None
    assert found.pop("complete") is True
    return found


def seen(camera: str, position: list[int] | None, category: str | None, status: str | None) -> dict[str, Any]:
    return {"camera": camera, "position": position, "category": category, "status": status}


def noticed(thing: str | None, state: str | None, effect: str | None) -> dict[str, Any]:
    return {"object": thing, "state": state, "effect": effect}


# --- perception -----------------------------------------------------------------------------------------------------

BACK = [40, 10]  # of 80 x 40


@pytest.mark.parametrize(
    ("question", "answer", "objects"),
    [
        (STATUS, "Turn left.", [seen("CAM_BACK", BACK, None, "Turn left")]),
        (
            f"{STATUS} Options: A. Going ahead. B. Turn left.",
            "Final: {B. Turn left.}  \nObject: black sedan  \nEnvironment: clear",
            [seen("CAM_BACK", BACK, "car", "Turn left")],
        ),
        (f"{STATUS} Options: A. Going ahead. B. Turn left.", "A", [seen("CAM_BACK", BACK, None, "Going ahead")]),
        (f"{STATUS} Options: A. Going ahead. B. Turn left.", "It cannot be told.", None),
        ("What is the visual description of <c2,CAM_FRONT,0.5,0.5>?", "Green light.", [
            seen("CAM_FRONT", [80, 45], "traffic_light", "green")
        ]),
        ("What is the visual description of <c2,CAM_FRONT,0.5,0.5>?", "Large vehicle.", [
            seen("CAM_FRONT", [80, 45], None, None)
        ]),
        (
            OBJECTS,
            "- <c1,CAM_FRONT,0.5,0.5>, pickup truck, relative to ego: front\n- <c2,CAM_BACK,1.0,1.0>, man near a bus\n"
            "IDs: <c1,CAM_FRONT,0.5,0.5><c2,CAM_BACK,1.0,1.0>",
            [seen("CAM_FRONT", [80, 45], "truck", None), seen("CAM_BACK", [79, 39], "pedestrian", None)],
        ),
        (
            OBJECTS,
            "There is a brown SUV to the back of the ego vehicle, and a red light to the front of the ego vehicle. The IDs of "
            "these objects are <c1,CAM_BACK,0.5,0.25>, and <c2,CAM_FRONT,0.5,0.5>.",
            [seen("CAM_BACK", BACK, "car", None), seen("CAM_FRONT", [80, 45], "traffic_light", "red")],
        ),
        (  # three are described, two have a tag: which is which is not said
            OBJECTS,
            "There is a van to the back of the ego vehicle, a bus to the front of the ego vehicle, and a car to the left of it. "
            "The IDs of these objects are <c1,CAM_BACK,0.5,0.25>, and <c2,CAM_FRONT,0.5,0.5>.",
            [seen("CAM_BACK", BACK, None, None), seen("CAM_FRONT", [80, 45], None, None)],
        ),
        (
            ELEMENTS,
            "There are three. They are [(traffic light, green, 790, 440, 810, 460), (traffic light, unknown, 0, 0, 20, 90), "
            "(road sign, go straight, 1590, 0.14, 1620.5, 10)].",
            [
                seen("CAM_FRONT", [80, 45], "traffic_light", "green"),
                seen("CAM_FRONT", [1, 4], "traffic_light", None),
                seen("CAM_FRONT", None, "traffic_sign", "go straight"),  # its middle lies outside
            ],
        ),
        ("How many cars are behind <c1,CAM_BACK,0.5,0.25>?", "Two.", None),
        ("What is the relative positioning of the objects in the scene?", "<c1,CAM_BACK,0.5,0.25> is left.", None),
        ("Is there a bus?", "Yes.", None),
    ],
)  # fmt: skip
def test_perception(pictures: dict[str, Path], question: str, answer: str, objects: list[Any] | None) -> None:
    expected = None if objects is None else {"objects": objects}
    assert target(sample(pictures, "perception", question, answer)) == expected


def test_a_camera_that_is_not_shown_is_not_said(pictures: dict[str, Path]) -> None:
    answer = "- <c1,CAM_FRONT,0.5,0.5>, car\n- <c2,CAM_BACK,0.5,0.5>, bus"
    found = target(sample(pictures, "perception", OBJECTS, answer, cameras=["CAM_FRONT"]))
    assert found == {"objects": [seen("CAM_FRONT", [80, 45], "car", None)]}
    elements = "[(traffic light, red, 790, 440, 810, 460)]"
    assert target(sample(pictures, "perception", ELEMENTS, elements, cameras=["CAM_BACK"])) is None


def test_of_pictures_of_two_sizes_without_names_no_position_is_known(pictures: dict[str, Path]) -> None:
    nameless = replace(sample(pictures, "perception", STATUS, "Turn left."), cameras=())
    assert target(nameless) == {"objects": [seen("CAM_BACK", None, None, "Turn left")]}
    alike = replace(nameless, images=(pictures["CAM_FRONT"],) * 2)
    assert target(alike) == {"objects": [seen("CAM_BACK", [80, 22], None, "Turn left")]}


def test_more_objects_than_the_schema_takes_and_the_same_twice(pictures: dict[str, Path]) -> None:
    lines = [f"- <c{n},CAM_FRONT,0.{n // 2}5,0.5>, car" for n in range(2, 20)]  # each place twice
    found = target(sample(pictures, "perception", OBJECTS, "\n".join(lines)))
    assert [one["position"][0] for one in found["objects"]] == [24, 40, 56, 72, 88, 104, 120, 136]


# --- reasoning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "objects"),
    [
        (
            NOTICE,
            "First: <c1,CAM_FRONT,4.32,0.85>, gray pickup truck; State: stationary; Ego: come to a stop  \n"
            "Second: <c2,CAM_FRONT,0.9,0.91>, pedestrian; Ego: slow down",
            [noticed("gray pickup truck", "stationary", "come to a stop"), noticed("pedestrian", None, "slow down")],
        ),
        (
            NOTICE,
            "Firstly, notice that <c3,CAM_FRONT,0.65,0.09>. The object is a traffic sign, so the ego vehicle should keep going "
            "at the same speed. Secondly, notice <c1,CAM_BACK,0.68,0.55>; it is turning left, so the ego vehicle should "
            "remain stationary.",
            [
                noticed("traffic sign", None, "keep going at the same speed"),
                noticed("<c1,CAM_BACK,0.6800,0.5500>", "turning left", "remain stationary"),
            ],
        ),
        (
            "What is the future state of <c1,CAM_BACK,0.68,0.55>? Options: A. Turn left. B. Stationary.",
            "B",
            [noticed("<c1,CAM_BACK,0.6800,0.5500>", "Stationary", None)],
        ),
        ("Predict the behavior of the ego vehicle. Options: A. It stands. B. It drives.", "Final: B. Support: lanes", None),
        ("Would <c1,CAM_BACK,0.68,0.55> take <c3,CAM_FRONT,0.65,0.09> into account?", "Yes.", None),
    ],
)
def test_reasoning(pictures: dict[str, Path], question: str, answer: str, objects: list[Any] | None) -> None:
    expected = None if objects is None else {"objects": objects}
    assert target(sample(pictures, "reasoning", question, answer)) == expected


# --- planning -------------------------------------------------------------------------------------------------------


def plan(actions: list[str], reason: str | None = None, probability: float | None = None) -> dict[str, Any]:
    return {"actions": actions, "reason": reason, "probability": probability}


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (
            ACTIONS,
            "Target: <c1,CAM_FRONT,0.5,0.5> (white van)  \nAction: keep going at the same speed  \n"
            "Reason: The van moves on; it is far.  \nProbability: High  \nFinal: keep going at the same speed",
            plan(["keep_speed"], "The van moves on; it is far"),
        ),
        (ACTIONS, "Action: slow down\nReason: fog.\nProbability: 80 %", plan(["slow_down"], "fog", 0.8)),
        (ACTIONS, "Action: slow down\nProbability: 0.35", plan(["slow_down"], None, 0.35)),
        (ACTIONS, "Action: slow down\nProbability: 140", plan(["slow_down"])),
        (
            ACTIONS,
            "The action is to remain stationary, the reason is to follow the traffic rules, which has a high probability.",
            plan(["stop"], "to follow the traffic rules"),
        ),
        (WHAT_NOW, "C", plan(["stop"])),
        (WHAT_NOW, "B", None),  # no action of the schema's
        (WHAT_NOW, "A or C", None),
        ("What are safe actions to take for the ego vehicle?", "Accelerate, change to the left lane and turn right.", plan(
            ["accelerate", "change_lane_left", "turn_right"]
        )),
        ("What are safe actions to take for the ego vehicle?", "Brake gently to a stop; it rains.", plan(["stop"], "it rains")),
        ("What should the ego vehicle do?", "Do not accelerate, but slow down without braking.", plan(["slow_down"])),
        # what must not be done, what others do, what might happen: no plans
        ("What are dangerous actions to take for the ego vehicle?", "Turn right.", None),
        ("What actions taken by the ego vehicle can lead to a collision with <c1,CAM_FRONT,0.5,0.5>?", "Accelerate.", None),
        ("What should the ego vehicle not do?", "Accelerate.", None),
        ("Based on <c2,CAM_FRONT,0.5,0.5>, what actions may <c1,CAM_BACK,0.5,0.25> take?", "Turn left.", None),
        ("Is it necessary to take <c1,CAM_FRONT,0.5,0.5> into account?", "Yes.", None),
    ],
)  # fmt: skip
def test_planning(pictures: dict[str, Path], question: str, answer: str, expected: dict[str, Any] | None) -> None:
    assert target(sample(pictures, "planning", question, answer)) == expected


def test_a_long_reason_ends_with_a_whole_clause_or_is_not_said(pictures: dict[str, Path]) -> None:
    clause = "the road is wet and the lamp of the second lane is broken"
    found = target(sample(pictures, "planning", ACTIONS, f"Action: slow down\nReason: {clause}; {clause}; {clause}"))
    assert found == plan(["slow_down"], f"{clause}; {clause}")
    assert target(sample(pictures, "planning", ACTIONS, f"Action: slow down\nReason: {'word ' * 40}")) == plan(["slow_down"])


# --- the record's own object, and the whole file ---------------------------------------------------------------------


def test_a_records_own_object_is_taken_as_it_is_and_held_to_the_schema(pictures: dict[str, Path]) -> None:
    own = '{"actions":["yield"],"reason":"a tram","probability":0.9,"complete":true}'
    one = replace(sample(pictures, "planning", "And now?", "Wait."), structured=own)
    assert structured_target(one, SCHEMAS["planning"], PictureSizes()) == own
    for wrong, why in (
        ('{"actions":["fly"],"reason":null,"probability":null,"complete":true}', "fly"),
        ('{"reason":null,"actions":["stop"],"probability":null,"complete":true}', "expected the properties"),
        ('{"actions":["stop"],"reason":null,"probability":null,"complete":false}', "whole answer"),
        ('{"actions":null,"reason":null,"probability":null,"complete":true}', "nothing but null"),
    ):
        with pytest.raises(DataError, match=f"a.json, record 7: structured: .*{why}"):
            structured_target(replace(one, structured=wrong), SCHEMAS["planning"], PictureSizes())


def test_an_unlabelled_record_and_a_missing_picture(pictures: dict[str, Path]) -> None:
    assert target(sample(pictures, "planning", ACTIONS, None)) is None
    with pytest.raises(DataError, match=r"a.json, record 7: images: .*gone.jpg"):
        target(replace(sample(pictures, "perception", STATUS, "Parked.", ["CAM_BACK"]), images=(Path("gone.jpg"),)))


def test_both_forms_are_told_apart_by_the_instruction(pictures: dict[str, Path]) -> None:
    samples = [sample(pictures, "planning", ACTIONS, "Action: slow down"), sample(pictures, "planning", "How many?", "Two.")]
    assert taught_samples(samples, "none", " JSON") == samples
    also = taught_samples(samples, "also", " JSON")
    assert [one.question for one in also] == [ACTIONS, f"{ACTIONS} JSON", "How many?"]
    assert (also[1].answer_form, also[1].answer) == ("open", also[1].structured)
    assert taught_samples(samples, "only", " JSON") == [also[1]]


def test_every_target_is_what_the_grammar_lets_a_model_write(pictures: dict[str, Path]) -> None:
    """Token by token of a real tokenizer, for a frame of the record's cameras."""
    tokenizer = make_tokenizer("internvl")
    end = tokenizer.token_to_id("<|im_end|>")
    grammars = Grammars(tokenizer.to_str().encode(), tokenizer.get_vocab_size(), end, SCHEMAS)
    answers = {
        "perception": (OBJECTS, '- <c1,CAM_FRONT,0.5,0.5>, sign "NO ENTRY"\n- <c2,CAM_BACK,0.1,0.2>, Müllauto'),
        "reasoning": (NOTICE, 'First: <c1,CAM_FRONT,0.5,0.5>, sign "NO \\ ENTRY"; State: naß\u200b\u0007; Ego: stop'),
        "planning": (ACTIONS, "Action: slow down\nReason: fog\tand\nice\nProbability: 0.05"),
    }
    for capability in CAPABILITIES:
        one = sample(pictures, capability, *answers[capability])
        text = structured_target(one, SCHEMAS[capability], PictureSizes())
        assert text is not None
        constraint = grammars.constraint(capability, CAMERAS)
        for token in tokenizer.encode(text, add_special_tokens=False).ids:
            assert constraint.allows(token), (text, tokenizer.decode([token]))
            constraint.accept(token)
        assert constraint.finished


def test_an_answer_about_what_to_notice_that_counts_nothing_up_says_nothing(pictures: dict[str, Path]) -> None:
    """As an answer that is one option's letter, or cut."""
    assert target(sample(pictures, "reasoning", NOTICE, "A gray van ahead.")) is None
