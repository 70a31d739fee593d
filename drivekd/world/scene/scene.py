"""What is in one moment of the world, and the facts that questions ask about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .mesh import Color
from .people import PEOPLE_SIZES_M
from .road import Road
from .street import SignalState
from .vehicles import VEHICLE_SIZES_M

Daylight = Literal["day", "dusk", "night"]
Weather = Literal["clear", "fog", "rain"]
LeadState = Literal["near", "far", "none"]
LaneState = Literal["free", "blocked", "missing"]
ActorKind = Literal["car", "van", "truck", "bus", "pedestrian", "cyclist"]
PropKind = Literal["building", "tree", "lamp_post"]

DAYLIGHTS: tuple[Daylight, ...] = get_args(Daylight)
WEATHERS: tuple[Weather, ...] = get_args(Weather)

EGO_SPEEDS_MPS = (4, 6, 8, 10, 12, 15)
NEAR_GAP_M = 15.0
"""A vehicle ahead with a smaller gap is near. No scene has a gap between 12 and 22 m, so nothing hangs on this edge."""
FREE_GAP_M = 24.0
"""A neighbouring lane is free when no vehicle in it begins nearer than this."""
HIDDEN_BEHIND_M = 16.0
"""No vehicle of a neighbouring lane is within this distance behind the ego: the front camera could not see it."""

PAINTS: dict[str, Color] = {
    "white": (232, 233, 235),
    "black": (48, 50, 56),
    "gray": (128, 132, 138),
    "red": (186, 32, 32),
    "blue": (38, 78, 176),
    "green": (38, 124, 72),
    "yellow": (232, 188, 44),
}


@dataclass(frozen=True)
class Actor:
    """A road user. s_m, d_m: centre of its footprint on the road; it faces along the road, or against it."""

    kind: ActorKind
    color: str
    s_m: float
    d_m: float
    oncoming: bool = False
    braking: bool = False
    crossing: bool = False
    stride: int = 0

    @property
    def size_m(self) -> tuple[float, float, float]:
        """Length, width, height."""
        return VEHICLE_SIZES_M[self.kind] if self.is_vehicle else PEOPLE_SIZES_M[self.kind]

    @property
    def is_vehicle(self) -> bool:
        """Whether its kind is one of VEHICLE_SIZES_M; the others walk or cycle."""
        return self.kind in VEHICLE_SIZES_M

    @property
    def rear_m(self) -> float:
        """s of the end that the ego vehicle would reach first."""
        return self.s_m - self.size_m[0] / 2.0


@dataclass(frozen=True)
class Prop:
    """Something that is never asked about. variant: which one of the catalogue. faces_left: towards larger d."""

    kind: PropKind
    s_m: float
    d_m: float
    variant: int = 0
    faces_left: bool = False


@dataclass(frozen=True)
class Scene:
    """One moment. signal_m, crosswalk_m: s of the signal and of the crosswalk's centre, None when there is none."""

    seed: int
    road: Road
    ego_speed_mps: int
    daylight: Daylight
    weather: Weather
    signal: SignalState = "none"
    signal_m: float | None = None
    crosswalk_m: float | None = None
    actors: tuple[Actor, ...] = ()
    props: tuple[Prop, ...] = ()

    @property
    def lead(self) -> Actor | None:
        """The nearest vehicle ahead in the ego lane."""
        ahead = [actor for actor in self._vehicles_in_lane(self.road.ego_lane) if actor.rear_m > 0.0]
        return min(ahead, key=lambda actor: actor.rear_m, default=None)

    @property
    def lead_state(self) -> LeadState:
        """Of the vehicle ahead: "near" when its rear is within NEAR_GAP_M."""
        if self.lead is None:
            return "none"
        return "near" if self.lead.rear_m <= NEAR_GAP_M else "far"

    @property
    def time_to_lead_s(self) -> float | None:
        """Seconds until the ego reaches the place where the lead is now, at its present speed."""
        return None if self.lead is None else self.lead.rear_m / self.ego_speed_mps

    @property
    def crossing_pedestrian(self) -> Actor | None:
        """A pedestrian on the crosswalk in front of the ego lane."""
        return next((actor for actor in self.actors if actor.crossing), None)

    def lane_state(self, side: Literal["left", "right"]) -> LaneState:
        """Whether the ego could change to the lane on that side."""
        lane = self.road.ego_lane + (-1 if side == "left" else 1)
        if not 0 <= lane < self.road.num_lanes:
            return "missing"
        vehicles = self._vehicles_in_lane(lane)
        close = [actor for actor in vehicles if -HIDDEN_BEHIND_M < actor.rear_m < FREE_GAP_M]
        return "blocked" if close else "free"

    def _vehicles_in_lane(self, lane: int) -> list[Actor]:
        offset_m = self.road.lane_offset_m(lane)
        in_lane = self.road.lane_width_m / 2.0
        return [actor for actor in self.actors if actor.is_vehicle and abs(actor.d_m - offset_m) < in_lane]
