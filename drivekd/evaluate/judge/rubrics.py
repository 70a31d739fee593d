"""What a judge gives points for: six rubrics with the criteria and points of DriveBench's (arXiv:2501.04003), in our own words.

Which one: by what a question is about (perception, prediction, behavior, planning) and by whether its answer is a choice, yes or
no, or open. DriveBench asks six of these combinations; for another one the nearest rubric is taken and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivekd.sample import AnswerForm

VERSION = "drivebench-6/1"  # criteria's origin / version of our words: a change of either is another judge


@dataclass(frozen=True)
class Criterion:
    """name: as the judge lists it. points: the most it can give. asks: what earns them."""

    name: str
    points: int
    asks: str


@dataclass(frozen=True)
class Rubric:
    """subject: what kind of question it is for, as the judge reads it. Points of all criteria: 100."""

    name: str
    subject: str
    criteria: tuple[Criterion, ...]


PERCEPTION_CHOICE = Rubric(
    "perception_choice",
    "a question with given options about what the cameras see",
    (
        Criterion("Correct answer", 50, "the chosen option is the reference's; all points or none"),
        Criterion("Object recognition", 10, "the objects that it speaks of are those of the question, called what they are"),
        Criterion("Location and orientation", 15, "where these objects are and which way they face or move is told rightly"),
        Criterion("Environment", 15, "it takes the surroundings into account: road, traffic, weather, light"),
        Criterion("Clarity", 10, "it is grammatical, to the point and easy to follow"),
    ),
)
PERCEPTION_OPEN = Rubric(
    "perception_open",
    "an open question about what the cameras see",
    (
        Criterion("Action", 20, "what the ego vehicle or the object should do or does agrees with the reference"),
        Criterion("Motion", 20, "speeds, directions and their changes agree with the reference"),
        Criterion("Context", 15, "it fits the traffic, the road and the objects of this scene"),
        Criterion("Situational awareness", 15, "it notices what matters for safety here, and nothing that is not there"),
        Criterion("Conciseness", 20, "it says what was asked, without padding or repetition"),
        Criterion("Grammar", 10, "its sentences are correct"),
    ),
)
PREDICTION_YES_NO = Rubric(
    "prediction_yesno",
    "a yes-or-no question about what an object is or will do",
    (
        Criterion("Correct answer", 40, "its yes or no is the reference's; all points or none"),
        Criterion("Category", 15, "the kind of object that it names is right"),
        Criterion("Appearance", 15, "colour, shape and other visible features are right"),
        Criterion("Position and motion", 15, "where the object is and how it moves is right"),
        Criterion("Clarity", 15, "the answer and its reason are easy to follow"),
    ),
)
PREDICTION_OPEN = Rubric(
    "prediction_open",
    "an open question about which objects to watch, in which order, and what they will do",
    (
        Criterion("Identifiers and order", 20, "it names the reference's objects by their tags, in the reference's order"),
        Criterion("Category", 20, "each object's kind is right"),
        Criterion("State", 15, "what each object does now is right: moving, standing, a light's colour"),
        Criterion("Action", 15, "what the ego vehicle should do about each object agrees with the reference"),
        Criterion("Logic", 20, "the order and the actions follow from what it says of the objects"),
        Criterion("Grammar", 10, "its sentences are correct"),
    ),
)
PLANNING_OPEN = Rubric(
    "planning_open",
    "an open question about what the ego vehicle should do",
    (
        Criterion("Action", 40, "its actions agree with the reference; a dangerous one earns nothing here"),
        Criterion("Reasoning", 20, "the reasons hold in this scene and lead to the actions"),
        Criterion("Probability", 15, "likelihoods that it states, in words or numbers, agree with the reference"),
        Criterion("Context", 15, "it takes other road users, signals and the road into account"),
        Criterion("Conciseness", 10, "it says what was asked, without padding or repetition"),
    ),
)
BEHAVIOR_CHOICE = Rubric(
    "behavior_choice",
    "a question with given options about how the ego vehicle behaves",
    (
        Criterion("Correct answer", 50, "the chosen option is the reference's; all points or none"),
        Criterion("Detail", 15, "steering and speed are described as the reference has them"),
        Criterion("Reasoning", 15, "its reasons hold in this scene and lead to the choice"),
        Criterion("Relevance", 10, "it speaks of what was asked and of nothing else"),
        Criterion("Clarity", 10, "it is easy to follow"),
    ),
)
RUBRICS: Mapping[str, Rubric] = {
    rubric.name: rubric
    for rubric in (PERCEPTION_CHOICE, PERCEPTION_OPEN, PREDICTION_YES_NO, PREDICTION_OPEN, PLANNING_OPEN, BEHAVIOR_CHOICE)
}

# (subject, is open) -> rubric. In DriveBench itself: perception both ways, prediction both ways (closed = yes or no),
# planning open, behavior closed.
_BY_SUBJECT: Mapping[tuple[str, bool], Rubric] = {
    ("perception", False): PERCEPTION_CHOICE,
    ("perception", True): PERCEPTION_OPEN,
    ("prediction", False): PREDICTION_YES_NO,
    ("prediction", True): PREDICTION_OPEN,
    ("behavior", False): BEHAVIOR_CHOICE,
    ("behavior", True): PLANNING_OPEN,
    ("planning", False): BEHAVIOR_CHOICE,
    ("planning", True): PLANNING_OPEN,
}
_SUBJECT_OF_CAPABILITY = {"perception": "perception", "reasoning": "prediction", "planning": "planning"}
_OWN = {
    ("perception", "choice"),
    ("perception", "open"),
    ("prediction", "yesno"),
    ("prediction", "open"),
    ("planning", "open"),
    ("behavior", "choice"),
}


def rubric_for(capability: str, topic: str, form: AnswerForm) -> tuple[Rubric, bool]:
    """The rubric of a question, and whether DriveBench has one for just this: (subject, form), else it is the nearest.

    topic: "prediction" and "behavior" tell Drive-KD's reasoning apart, as `drivekd data convert` keeps them; any other topic
    leaves reasoning to prediction's rubrics.
    """
    subject = topic if topic in ("prediction", "behavior") else _SUBJECT_OF_CAPABILITY[capability]
    return _BY_SUBJECT[subject, form == "open"], (subject, form) in _OWN
