"""From a seed to a scene: draws a situation, places things that realise it, and checks the result.

A scene is taken only when the oracle gives the drawn action and the front camera sees every thing that the answer
hangs on; otherwise the same situation is placed anew, so that rejection does not shift the balance.
"""

from __future__ import annotations

import numpy as np

from .oracle import COLLISION_TIME_S, FAST_MPS, plan
from .picture.camera import make_camera
from .picture.labels import look
from .scene.road import Road
from .scene.scene import PAINTS, Actor, ActorKind, Scene
from .scene.scenery import place_scenery
from .scene.vehicles import VEHICLE_SIZES_M
from .situation import Situation, draw_situation

_MAX_ATTEMPTS = 300
_CHECK_SIZE_PX = (320, 180)
_MIN_VISIBILITY, _MIN_SIGNAL_VISIBILITY = 0.55, 0.95
_VEHICLE_SHARES: dict[ActorKind, float] = {"car": 0.45, "van": 0.17, "truck": 0.2, "bus": 0.18}
_FAR_GAP_M = (22.0, 42.0)
_NEAR_GAP_M = (6.0, 12.0)
_TIME_MARGIN = 1.1  # far gaps keep 10 % away from the four seconds that the answers hang on


def make_scene(seed: int) -> Scene:
    """The scene of `seed`; the same on every call."""
    situation = situation_of(seed)
    for attempt in range(1, _MAX_ATTEMPTS):
        scene = _place(seed, situation, np.random.default_rng((seed, attempt)))
        if _realises(scene, situation):
            return scene
    raise AssertionError(f"no scene for seed {seed} after {_MAX_ATTEMPTS} attempts: {situation}")


def situation_of(seed: int) -> Situation:
    """The facts that `make_scene(seed)` realises; a thousand times cheaper than the scene."""
    return draw_situation(np.random.default_rng((seed, 0)))


def _realises(scene: Scene, situation: Situation) -> bool:
    facts = (scene.lead_state, scene.signal, scene.lane_state("left"), scene.lane_state("right"))
    if facts != (situation.lead, situation.signal, situation.left, situation.right) or plan(scene).action != situation.action:
        return False
    sight = look(scene, make_camera("CAM_FRONT", _CHECK_SIZE_PX))
    if scene.signal != "none" and sight.signal_visibility < _MIN_SIGNAL_VISIBILITY:
        return False
    seen = {label.actor: label.visibility for label in sight.labels}
    return all(seen.get(scene.actors.index(actor), 0.0) >= _MIN_VISIBILITY for actor in _key_actors(scene))


def _key_actors(scene: Scene) -> list[Actor]:
    """The actors without which the front camera's answers would change."""
    blockers = [actor for actor in scene.actors if actor.is_vehicle and not actor.oncoming and 0.0 < actor.rear_m < 15.0]
    keys = [actor for actor in (scene.lead, scene.crossing_pedestrian) if actor is not None]
    in_neighbour_lane = 1.5 * scene.road.lane_width_m
    return keys + [actor for actor in blockers if actor not in keys and abs(actor.d_m) < in_neighbour_lane]


def _place(seed: int, situation: Situation, rng: np.random.Generator) -> Scene:
    road = _draw_road(situation, rng)
    crosswalk_m = float(rng.uniform(9.5, 13.5)) if situation.crosswalk else None
    actors = [
        *_ego_lane(situation, rng),
        *_other_lanes(situation, road, rng),
        *_oncoming(road, rng),
        *_sidewalks(road, rng),
    ]
    if situation.pedestrian and crosswalk_m is not None:
        place_m, across_m = crosswalk_m + float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-1.3, 1.3))
        actors.append(Actor("pedestrian", _color(rng), place_m, across_m, crossing=True, stride=int(rng.choice([-2, -1, 1, 2]))))
    return Scene(
        seed=seed,
        road=road,
        ego_speed_mps=situation.ego_speed_mps,
        daylight=situation.daylight,
        weather=situation.weather,
        signal=situation.signal,
        signal_m=None if situation.signal == "none" else float(rng.integers(32, 45)) / 2.0,  # half metres: few meshes
        crosswalk_m=crosswalk_m,
        actors=tuple(actors),
        props=place_scenery(road, rng),
    )


def _draw_road(situation: Situation, rng: np.random.Generator) -> Road:
    num_left = 0 if situation.left == "missing" else 1 + int(rng.random() < 0.2)
    num_right = 0 if situation.right == "missing" else 1 + int(rng.random() < 0.2)
    return Road(
        num_lanes=num_left + 1 + num_right,
        ego_lane=num_left,
        num_opposite_lanes=2 * int(rng.random() < 0.5),
        curvature_per_m=situation.bend / float(rng.uniform(40.0, 80.0)),
        curve_start_m=float(rng.uniform(4.0, 9.0)),
    )


def _ego_lane(situation: Situation, rng: np.random.Generator) -> list[Actor]:
    actors = []
    if situation.lead != "none":
        gap_m = _draw_gap_m(situation, rng)
        braking = rng.random() < (0.6 if situation.action == "brake" else 0.3)
        actors.append(_vehicle(rng, gap_m, 0.0, braking=braking))
        if rng.random() < 0.4:
            actors.append(_vehicle(rng, gap_m + actors[0].size_m[0] + float(rng.uniform(9.0, 25.0)), 0.0))
    if rng.random() < 0.5:
        actors.append(_vehicle_behind(rng, 0.0, nearest_m=-9.0))
    return actors


def _draw_gap_m(situation: Situation, rng: np.random.Generator) -> float:
    if situation.lead == "near":
        return float(rng.uniform(*_NEAR_GAP_M))
    least_m, most_m = _FAR_GAP_M
    edge_m = COLLISION_TIME_S * situation.ego_speed_mps
    if situation.ego_speed_mps >= FAST_MPS:
        return float(rng.uniform(least_m, min(most_m, edge_m / _TIME_MARGIN)))
    return float(rng.uniform(max(least_m, edge_m * _TIME_MARGIN), most_m))


def _other_lanes(situation: Situation, road: Road, rng: np.random.Generator) -> list[Actor]:
    actors = []
    for lane in range(road.num_lanes):
        if lane == road.ego_lane:
            continue
        offset_m = road.lane_offset_m(lane)
        neighbour = abs(lane - road.ego_lane) == 1
        blocked = (situation.left if lane < road.ego_lane else situation.right) == "blocked" if neighbour else rng.random() < 0.4
        if blocked:
            actors.append(_vehicle(rng, float(rng.uniform(6.0, 11.5)), offset_m))
        if rng.random() < 0.4:
            actors.append(_vehicle(rng, float(rng.uniform(32.0, 60.0)), offset_m))
        if rng.random() < 0.6:
            actors.append(_vehicle_behind(rng, offset_m, nearest_m=-7.0))
    return actors


def _oncoming(road: Road, rng: np.random.Generator) -> list[Actor]:
    actors = []
    for lane in range(road.num_opposite_lanes):
        for start_m in (-30.0, 12.0, 45.0):
            if rng.random() < 0.5:
                rear_m = start_m + float(rng.uniform(0.0, 15.0))
                actors.append(_vehicle(rng, rear_m, road.opposite_lane_offset_m(lane), oncoming=True))
    return actors


def _sidewalks(road: Road, rng: np.random.Generator) -> list[Actor]:
    actors = []
    for kerb_m, side in ((road.left_kerb_m, 1.0), (road.right_kerb_m, -1.0)):
        for start_m in (-16.0, 8.0, 15.0, 22.0):
            if rng.random() < 0.4:
                kind: ActorKind = "pedestrian" if rng.random() < 0.65 else "cyclist"
                d_m = kerb_m + side * float(rng.uniform(0.7, 2.2))
                actors.append(
                    Actor(kind, _color(rng), start_m + float(rng.uniform(0.0, 5.0)), d_m, stride=int(rng.integers(-2, 3)))
                )
    return actors


def _vehicle_behind(rng: np.random.Generator, d_m: float, nearest_m: float) -> Actor:
    """A vehicle whose front is behind nearest_m, far enough back not to count as alongside."""
    vehicle = _vehicle(rng, 0.0, d_m)
    front_m = min(nearest_m, vehicle.size_m[0] - 17.0) - float(rng.uniform(0.0, 18.0))
    return Actor(vehicle.kind, vehicle.color, front_m - vehicle.size_m[0] / 2.0, d_m)


def _vehicle(rng: np.random.Generator, rear_m: float, d_m: float, *, oncoming: bool = False, braking: bool = False) -> Actor:
    kinds = tuple(_VEHICLE_SHARES)
    kind = kinds[int(rng.choice(len(kinds), p=tuple(_VEHICLE_SHARES.values())))]
    middle_m = rear_m + VEHICLE_SIZES_M[kind][0] / 2.0
    return Actor(kind, _color(rng), middle_m, d_m + float(rng.uniform(-0.2, 0.2)), oncoming=oncoming, braking=braking)


def _color(rng: np.random.Generator) -> str:
    return str(rng.choice(tuple(PAINTS)))
