"""A scene's answers as objects: what `structured=True` shall give about it, from the same exact facts as the texts.

    perception   the signal, the vehicle ahead, a crossing pedestrian, a curve of the road: those that there are, in this order
    reasoning    the one object that decides; none where nothing is critical
    planning     the action and its reason

What the world does not state is null: where a signal hangs or a curve lies in the picture, and how probable an action is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .oracle import Action, Cause, Plan
from .picture.labels import Label
from .scene.scene import Actor, Scene

FRONT = "CAM_FRONT"

# In words of the runtime's schemas (runtime/answers/schemas.py), which a world does not import: tests hold them together.
SCHEMA_ACTIONS: Mapping[Action, str] = {
    "keep": "keep_speed",
    "slow": "slow_down",
    "brake": "stop",
    "left": "change_lane_left",
    "right": "change_lane_right",
}
CAUSE_OBJECTS: Mapping[Cause, str] = {
    "signal": "traffic signal",
    "vehicle": "vehicle ahead",
    "pedestrian": "pedestrian",
    "curve": "curve of the road",
}
CURVE_STATUS = {"left": "road curves to the left", "right": "road curves to the right"}
_EFFECTS: Mapping[Action, str] = {
    "keep": "keep going",
    "slow": "slow down",
    "brake": "brake to a stop",
    "left": "change to the left lane",
    "right": "change to the right lane",
}


def structured_scene(scene: Scene, labels: Sequence[Label]) -> dict[str, Any]:
    """What the front camera sees of what matters. labels: of all cameras; a position is a box's centre in px of the picture."""
    boxes = {label.actor: label.box_px for label in labels if label.camera == FRONT}

    def seen(actor: Actor, status: str) -> dict[str, Any]:
        return _object(actor.kind, status, boxes.get(scene.actors.index(actor)))

    objects = []
    if scene.signal != "none":
        objects.append(_object("traffic_light", scene.signal))
    if scene.lead is not None:
        objects.append(seen(scene.lead, scene.lead_state))
    if scene.crossing_pedestrian is not None:
        objects.append(seen(scene.crossing_pedestrian, "crossing"))
    if scene.road.bend != "straight":
        objects.append(_object("other", CURVE_STATUS[scene.road.bend]))
    return {"objects": objects, "complete": True}


def _object(category: str, status: str, box_px: tuple[int, int, int, int] | None = None) -> dict[str, Any]:
    position = None if box_px is None else [(box_px[0] + box_px[2]) // 2, (box_px[1] + box_px[3]) // 2]
    return {"camera": FRONT, "position": position, "category": category, "status": status}


def structured_notice(scene: Scene, decided: Plan) -> dict[str, Any]:
    """The object that decides, its state, and what it makes the ego vehicle do."""
    states: dict[Cause, str] = {
        "signal": "red",
        "vehicle": scene.lead_state,
        "pedestrian": "crossing",
        "curve": f"to the {scene.road.bend}",
    }
    if decided.cause == "nothing":
        return {"objects": [], "complete": True}
    found = {"object": CAUSE_OBJECTS[decided.cause], "state": states[decided.cause], "effect": _EFFECTS[decided.action]}
    return {"objects": [found], "complete": True}


def structured_plan(decided: Plan) -> dict[str, Any]:
    """The action with its reason."""
    return {"actions": [SCHEMA_ACTIONS[decided.action]], "reason": decided.reason, "probability": None, "complete": True}
