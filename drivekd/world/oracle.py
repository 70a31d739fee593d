"""What the ego vehicle should do, by rules from the facts of a scene; the first rule that fits decides.

    1. A pedestrian is crossing, or the signal is red         brake to a stop
    2. The vehicle ahead is near, and the ego is fast         brake to a stop
    3. The vehicle ahead is near, and the ego is slow         the left lane if free, else the right, else slow down
    4. The vehicle ahead is reached within four seconds       slow down
    5. The road curves ahead, and the ego is fast             slow down
    6. Otherwise                                              keep going

Fast is 10 m/s and more. These are the rules of this small world, made to need both image and speed; not traffic law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .scene.scene import Scene

Action = Literal["keep", "slow", "brake", "left", "right"]
Cause = Literal["signal", "vehicle", "pedestrian", "curve", "nothing"]

FAST_MPS = 10
COLLISION_TIME_S = 4.0


@dataclass(frozen=True)
class Plan:
    """action: what to do. cause: what decided it. reason: one clause, without a full stop."""

    action: Action
    cause: Cause
    reason: str


def plan(scene: Scene) -> Plan:
    """Apply the rules of the module docstring."""
    fast = scene.ego_speed_mps >= FAST_MPS
    if scene.crossing_pedestrian is not None:
        return Plan("brake", "pedestrian", "a pedestrian is crossing")
    if scene.signal == "red":
        return Plan("brake", "signal", "the signal is red")
    if scene.lead_state == "near":
        return Plan("brake", "vehicle", "the vehicle ahead is near") if fast else _pass_near_lead(scene)
    if reaches_lead(scene):
        return Plan("slow", "vehicle", "the vehicle ahead is reached within 4 seconds")
    if fast and scene.road.bend != "straight":
        return Plan("slow", "curve", f"the road curves to the {scene.road.bend}")
    return Plan("keep", "nothing", "the way ahead is clear")


def reaches_lead(scene: Scene) -> bool:
    """Whether the ego, at its present speed, reaches the place of the vehicle ahead within COLLISION_TIME_S."""
    return scene.time_to_lead_s is not None and scene.time_to_lead_s < COLLISION_TIME_S


def _pass_near_lead(scene: Scene) -> Plan:
    if scene.lane_state("left") == "free":
        return Plan("left", "vehicle", "the vehicle ahead is near and the left lane is free")
    if scene.lane_state("right") == "free":
        return Plan("right", "vehicle", "the vehicle ahead is near and only the right lane is free")
    return Plan("slow", "vehicle", "the vehicle ahead is near and no lane is free")
