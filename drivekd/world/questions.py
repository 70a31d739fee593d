"""Questions and exact answers about a scene, as records of the Drive-KD format.

The options of a topic keep their order in every record, so that a letter is a class. What the ego vehicle should do,
and everything else that depends on time, names the ego speed in the question: a single picture does not show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import numpy as np

from drivekd.sample import AnswerForm, Capability

from .coordinates import format_tag
from .oracle import FAST_MPS, Action, Cause, Plan, plan, reaches_lead
from .picture.labels import Label, describe_actor
from .scene.scene import Actor, ActorKind, LeadState, Scene
from .scene.street import SignalState
from .structured import structured_notice, structured_plan, structured_scene

Key = TypeVar("Key", bound=str)

_FRONT = "CAM_FRONT"
_EGO = "The ego vehicle drives at {ego_speed_mps} m/s. "
OPTIONS_INTRO = " Options: "

SIGNALS: dict[SignalState, str] = {"red": "Red.", "green": "Green.", "none": "There is no signal."}
LEADS: dict[LeadState, str] = {"near": "Near, within 15 m.", "far": "Farther away.", "none": "There is none."}
ROADS = {"straight": "It is straight.", "left": "It curves to the left.", "right": "It curves to the right."}
_CLASSES = {"car": "A car or van.", "large": "A truck or bus.", "person": "A pedestrian or cyclist."}
CAUSES: dict[Cause, str] = {
    "signal": "The traffic signal.",
    "vehicle": "The vehicle ahead.",
    "pedestrian": "A pedestrian.",
    "curve": "The curve of the road.",
    "nothing": "Nothing critical.",
}
ACTIONS: dict[Action, str] = {
    "keep": "Keep going at the same speed.",
    "slow": "Slow down.",
    "brake": "Brake to a stop.",
    "left": "Change to the left lane.",
    "right": "Change to the right lane.",
}
_CLASS_OF_KIND: dict[ActorKind, str] = {
    "car": "car",
    "van": "car",
    "truck": "large",
    "bus": "large",
    "pedestrian": "person",
    "cyclist": "person",
}


def _options(texts: Mapping[Key, str]) -> str:
    return " ".join(f"{letter}. {text}" for letter, text in zip("ABCDE", texts.values(), strict=False))


def letter_of(texts: Mapping[Key, str], key: Key) -> str:
    """The option's letter: its place among the texts of a topic."""
    return "ABCDE"[list(texts).index(key)]


def _option(texts: Mapping[Key, str], key: Key) -> str:
    return f"{letter_of(texts, key)}. {texts[key]}"


SCENE_QUESTION = "What matters in the scene ahead?"
NOTICE_QUESTION = _EGO + "What should it notice first?" + OPTIONS_INTRO + _options(CAUSES)
ACTION_QUESTION = _EGO + "What should it do?" + OPTIONS_INTRO + _options(ACTIONS)

PROMPTS: dict[Capability, str] = {
    "perception": SCENE_QUESTION,
    "reasoning": NOTICE_QUESTION,
    "planning": ACTION_QUESTION,
}
"""The default question of each capability; format with ego_speed_mps (an int) to get the training question exactly."""


class Message(TypedDict):
    role: str
    content: str


class Meta(TypedDict):
    """kind: how the answer is scored (Sample.answer_form). cameras: in the order of the images."""

    kind: AnswerForm
    topic: str
    scene: str
    cameras: list[str]
    ego_speed_mps: int


class _Record(TypedDict):
    messages: list[Message]
    images: list[str]
    question_type: Capability
    meta: Meta


class Record(_Record, total=False):
    """One question in the Drive-KD format; without the assistant's message when it is unlabelled.

    structured: the same answer as an object of the capability's schema; of a capability's default question alone.
    """

    structured: dict[str, Any]


@dataclass(frozen=True)
class Question:
    """cameras: which pictures are shown; () means all of them. structured: see Record."""

    capability: Capability
    topic: str
    answer_form: AnswerForm
    text: str
    answer: str
    cameras: tuple[str, ...] = ()
    structured: dict[str, Any] | None = None


def records_of(scene: Scene, labels: Sequence[Label], image_paths: Mapping[str, str], *, scene_name: str) -> list[Record]:
    """All records of one frame, answered. labels: of all cameras. image_paths: by camera, in the model's order."""
    return [_record(question, scene, image_paths, scene_name) for question in questions_of(scene, labels)]


def without_answer(record: Record) -> Record:
    """The same record, unlabelled."""
    bare: Record = {**record, "messages": record["messages"][:1]}
    bare.pop("structured", None)
    return bare


def questions_of(scene: Scene, labels: Sequence[Label]) -> list[Question]:
    """Every question that this scene can answer, in a fixed order of topics."""
    rng = np.random.default_rng((scene.seed, 14))
    decided = plan(scene)
    side = "left" if rng.random() < 0.5 else "right"
    questions = [_signal(scene), _lead(scene), _road(scene), _scene(scene, labels)]
    questions += _object(scene, labels, rng)
    return [*questions, _notice(scene, decided), _collision(scene), _action(scene, decided), _lane(scene, side)]


def _record(question: Question, scene: Scene, image_paths: Mapping[str, str], scene_name: str) -> Record:
    cameras = list(question.cameras or image_paths)
    record: Record = {
        "messages": [
            {"role": "user", "content": "<image>" * len(cameras) + question.text},
            {"role": "assistant", "content": question.answer},
        ],
        "images": [image_paths[camera] for camera in cameras],
        "question_type": question.capability,
        "meta": {
            "kind": question.answer_form,
            "topic": question.topic,
            "scene": scene_name,
            "cameras": cameras,
            "ego_speed_mps": scene.ego_speed_mps,
        },
    }
    if question.structured is not None:
        record["structured"] = question.structured
    return record


def _signal(scene: Scene) -> Question:
    text = "What does the traffic signal ahead show?" + OPTIONS_INTRO + _options(SIGNALS)
    return Question("perception", "signal", "choice", text, _option(SIGNALS, scene.signal), (_FRONT,))


def _lead(scene: Scene) -> Question:
    text = "Where is the nearest vehicle ahead in the ego lane?" + OPTIONS_INTRO + _options(LEADS)
    return Question("perception", "lead", "choice", text, _option(LEADS, scene.lead_state), (_FRONT,))


def _road(scene: Scene) -> Question:
    text = "How does the road run ahead?" + OPTIONS_INTRO + _options(ROADS)
    return Question("perception", "road", "choice", text, _option(ROADS, scene.road.bend), (_FRONT,))


def _scene(scene: Scene, labels: Sequence[Label]) -> Question:
    front = {label.actor: label for label in labels if label.camera == _FRONT}
    number = 0
    facts = {"Signal": str(scene.signal), "Vehicle ahead": "none", "Pedestrian": "none"}
    for name, state, actor in (
        ("Vehicle ahead", scene.lead_state, scene.lead),
        ("Pedestrian", "crossing", scene.crossing_pedestrian),
    ):
        if actor is not None:
            number += 1
            facts[name] = f"{state}, {_named(actor, number, front.get(scene.actors.index(actor)))}"
    facts["Road"] = "straight" if scene.road.bend == "straight" else f"curves to the {scene.road.bend}"
    facts["Left lane"], facts["Right lane"] = scene.lane_state("left"), scene.lane_state("right")
    answer = " ".join(f"{name}: {fact}." for name, fact in facts.items())
    return Question("perception", "scene", "open", SCENE_QUESTION, answer, structured=structured_scene(scene, labels))


def _named(actor: Actor, number: int, label: Label | None) -> str:
    """Tag and description; no tag where a tiny picture does not show the actor well enough for a box."""
    return describe_actor(actor) if label is None else f"{_tag(number, label)} {describe_actor(actor)}"


def _tag(number: int, label: Label) -> str:
    return format_tag(number, label.camera, *label.center)


def _object(scene: Scene, labels: Sequence[Label], rng: np.random.Generator) -> list[Question]:
    """One question about one object; first a class is drawn, then an object, so that classes are balanced.

    Not scored ("open"): the tag's place alone tells the class of 86 of 100 objects, measured on black images.
    """
    by_class: dict[str, list[Label]] = {}
    for label in labels:
        by_class.setdefault(_CLASS_OF_KIND[scene.actors[label.actor].kind], []).append(label)
    if not by_class:
        return []
    name = str(rng.choice(sorted(by_class)))
    label = by_class[name][int(rng.integers(len(by_class[name])))]
    text = f"What is object {_tag(1, label)}?" + OPTIONS_INTRO + _options(_CLASSES)
    return [Question("perception", "object", "open", text, _option(_CLASSES, name), (label.camera,))]


def _notice(scene: Scene, decided: Plan) -> Question:
    facts: dict[Cause, str] = {
        "signal": " It is red.",
        "vehicle": " It is near." if scene.lead_state == "near" else " It is farther away.",
        "pedestrian": " It is crossing.",
        "curve": f" It goes to the {scene.road.bend}.",
        "nothing": "",
    }
    text = NOTICE_QUESTION.format(ego_speed_mps=scene.ego_speed_mps)
    answer = _option(CAUSES, decided.cause) + facts[decided.cause]
    return Question("reasoning", "notice", "choice", text, answer, structured=structured_notice(scene, decided))


def _collision(scene: Scene) -> Question:
    text = _EGO + "Does it reach the place of the vehicle ahead within 4 seconds?"
    word = "Yes." if reaches_lead(scene) else "No."
    pace = "fast" if scene.ego_speed_mps >= FAST_MPS else "slow"
    why = {
        "near": "The vehicle ahead is near.",
        "far": f"The vehicle ahead is farther away and the ego vehicle is {pace}.",
        "none": "There is no vehicle ahead.",
    }[scene.lead_state]
    return Question("reasoning", "collision", "yesno", text.format(ego_speed_mps=scene.ego_speed_mps), f"{word} {why}")


def _action(scene: Scene, decided: Plan) -> Question:
    text = ACTION_QUESTION.format(ego_speed_mps=scene.ego_speed_mps)
    answer = f"{_option(ACTIONS, decided.action)} Reason: {decided.reason}."
    return Question("planning", "action", "choice", text, answer, structured=structured_plan(decided))


def _lane(scene: Scene, side: str) -> Question:
    text = (_EGO + f"Is the {side} lane free for a change?").format(ego_speed_mps=scene.ego_speed_mps)
    state = scene.lane_state("left" if side == "left" else "right")
    answers = {
        "free": "Yes.",
        "blocked": f"No. A vehicle is in the {side} lane.",
        "missing": f"No. There is no {side} lane.",
    }
    return Question("planning", "lane", "yesno", text, answers[state])
