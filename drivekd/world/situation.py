"""The facts that a scene shall have, drawn before anything is placed, so that actions and facts are balanced by design.

An action is drawn first, then a cause that leads to it, then every fact that the cause leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from .oracle import FAST_MPS, Action
from .scene.scene import DAYLIGHTS, EGO_SPEEDS_MPS, WEATHERS, Daylight, LaneState, LeadState, Weather
from .scene.street import SignalState

T = TypeVar("T")

_SLOW_SPEEDS = tuple(speed for speed in EGO_SPEEDS_MPS if speed < FAST_MPS)
_FAST_SPEEDS = tuple(speed for speed in EGO_SPEEDS_MPS if speed >= FAST_MPS)
_ACTION_SHARES: dict[Action, float] = {"keep": 0.20, "slow": 0.20, "brake": 0.26, "left": 0.17, "right": 0.17}


@dataclass(frozen=True)
class Situation:
    """The facts to be realised. bend: -1 right, 0 straight, 1 left."""

    action: Action
    ego_speed_mps: int
    signal: SignalState
    lead: LeadState
    pedestrian: bool
    bend: int
    left: LaneState
    right: LaneState
    crosswalk: bool
    daylight: Daylight
    weather: Weather


def draw_situation(rng: np.random.Generator) -> Situation:
    """Draw an action and facts for which the oracle gives that action."""
    action = _pick(rng, tuple(_ACTION_SHARES), tuple(_ACTION_SHARES.values()))
    situation = _draw_cause(rng, _draw_open_facts(rng, action))
    assert situation.left != "missing" or situation.right != "missing", "the world has no one-lane roads"
    return situation


def _draw_open_facts(rng: np.random.Generator, action: Action) -> Situation:
    left = _lane(rng, free=rng.random() < 0.5)
    # A right lane is free in every "right" scene, so it is blocked more often elsewhere: half of all frames each way.
    right = _lane(rng, free=rng.random() < 0.4, may_be_missing=left != "missing")
    return Situation(
        action=action,
        ego_speed_mps=_pick(rng, EGO_SPEEDS_MPS),
        signal=_pick(rng, ("green", "none")),
        lead=_pick(rng, ("near", "far", "none")),
        pedestrian=False,
        bend=_pick(rng, (-1, 0, 1), (0.3, 0.4, 0.3)),
        left=left,
        right=right,
        crosswalk=rng.random() < 0.4,
        daylight=_pick(rng, DAYLIGHTS, (0.5, 0.22, 0.28)),
        weather=_pick(rng, WEATHERS, (0.6, 0.2, 0.2)),
    )


def _draw_cause(rng: np.random.Generator, facts: Situation) -> Situation:
    if facts.action == "keep":
        return _draw_keep(rng, facts)
    if facts.action == "slow":
        return _draw_slow(rng, facts)
    if facts.action == "brake":
        return _draw_brake(rng, facts)
    slow = replace(facts, lead="near", ego_speed_mps=_pick(rng, _SLOW_SPEEDS))
    if facts.action == "left":
        return replace(slow, left="free")
    return replace(slow, left=_lane(rng, free=False), right="free")


def _draw_keep(rng: np.random.Generator, facts: Situation) -> Situation:
    if rng.random() < 0.5:
        return replace(facts, lead="far", ego_speed_mps=_pick(rng, _SLOW_SPEEDS))
    bend = 0 if facts.ego_speed_mps >= FAST_MPS else facts.bend
    return replace(facts, lead="none", bend=bend)


def _draw_slow(rng: np.random.Generator, facts: Situation) -> Situation:
    cause = _pick(rng, ("far", "curve", "boxed in"), (0.35, 0.42, 0.23))
    if cause == "boxed in":
        left = _lane(rng, free=False)
        right = _lane(rng, free=False, may_be_missing=left != "missing")
        return replace(facts, lead="near", left=left, right=right, ego_speed_mps=_pick(rng, _SLOW_SPEEDS))
    fast = replace(facts, ego_speed_mps=_pick(rng, _FAST_SPEEDS))
    if cause == "far":
        return replace(fast, lead="far")
    return replace(fast, lead="none", bend=_pick(rng, (-1, 1)))


def _draw_brake(rng: np.random.Generator, facts: Situation) -> Situation:
    cause = _pick(rng, ("red", "pedestrian", "both", "near"), (0.46, 0.22, 0.17, 0.15))
    if cause == "near":
        return replace(facts, lead="near", ego_speed_mps=_pick(rng, _FAST_SPEEDS))
    if cause == "red":
        return replace(facts, signal="red", lead=_pick(rng, ("near", "far", "none"), (0.2, 0.3, 0.5)))
    # The pedestrian walks between the ego and the vehicle ahead, so that one is never near.
    walking = replace(facts, pedestrian=True, crosswalk=True, lead=_pick(rng, ("far", "none")))
    return walking if cause == "pedestrian" else replace(walking, signal="red")


def _lane(rng: np.random.Generator, *, free: bool, may_be_missing: bool = True) -> LaneState:
    if free:
        return "free"
    return "missing" if may_be_missing and rng.random() < 0.25 else "blocked"


def _pick(rng: np.random.Generator, values: Sequence[T], shares: Sequence[float] | None = None) -> T:
    return values[int(rng.choice(len(values), p=shares))]
