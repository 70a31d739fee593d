"""The road: parallel lanes that run straight and then, from some metre on, along a circle.

Two frames. World: x forward, y left, z up, metres; the origin is on the ground below the ego vehicle's front.
Road: s along the ego lane's centre line, d to its left, metres. Before `curve_start_m` both frames agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

MEDIAN_WIDTH_M = 2.4
SHOULDER_WIDTH_M = 0.9
SIDEWALK_WIDTH_M = 3.2


@dataclass(frozen=True)
class Road:
    """Lanes of the ego direction counted from the left; opposite lanes, if any, lie beyond a median on the left.

    curvature_per_m: 0 is straight, positive bends to the left, 1 / radius.
    """

    num_lanes: int
    ego_lane: int
    num_opposite_lanes: int = 0
    lane_width_m: float = 3.5
    curvature_per_m: float = 0.0
    curve_start_m: float = 8.0

    def lane_offset_m(self, lane: int) -> float:
        """d of the centre of `lane`."""
        return (self.ego_lane - lane) * self.lane_width_m

    def opposite_lane_offset_m(self, lane: int) -> float:
        """d of the centre of opposite `lane`, counted outwards from the median."""
        return self.left_edge_m + MEDIAN_WIDTH_M + (lane + 0.5) * self.lane_width_m

    @property
    def left_edge_m(self) -> float:
        """d of the left edge line of the ego direction."""
        return (self.ego_lane + 0.5) * self.lane_width_m

    @property
    def right_edge_m(self) -> float:
        """d of the right edge line; negative."""
        return (self.ego_lane + 0.5 - self.num_lanes) * self.lane_width_m

    @property
    def left_kerb_m(self) -> float:
        """d of the kerb on the far left, beyond any opposite lanes."""
        opposite_m = MEDIAN_WIDTH_M + self.num_opposite_lanes * self.lane_width_m if self.num_opposite_lanes else 0.0
        return self.left_edge_m + opposite_m + SHOULDER_WIDTH_M

    @property
    def right_kerb_m(self) -> float:
        """d of the kerb on the right; negative."""
        return self.right_edge_m - SHOULDER_WIDTH_M

    @property
    def bend(self) -> str:
        """straight | left | right."""
        if self.curvature_per_m == 0.0:
            return "straight"
        return "left" if self.curvature_per_m > 0.0 else "right"

    def heading_rad(self, s_m: float) -> float:
        """Direction of the road at s, counter-clockwise from +x."""
        return max(0.0, s_m - self.curve_start_m) * self.curvature_per_m

    def to_world(self, s_m: float, d_m: float) -> tuple[float, float]:
        """World x, y of road point s, d."""
        heading = self.heading_rad(s_m)
        if heading == 0.0:
            return s_m, d_m
        x_m = self.curve_start_m + math.sin(heading) / self.curvature_per_m
        y_m = (1.0 - math.cos(heading)) / self.curvature_per_m
        return x_m - d_m * math.sin(heading), y_m + d_m * math.cos(heading)

    def from_world(self, x_m: Floats, y_m: Floats) -> tuple[Floats, Floats]:
        """Road s, d of world points; any common shape. Points beyond half a turn of the circle have no meaning."""
        if self.curvature_per_m == 0.0:
            return x_m, y_m
        side, radius_m = math.copysign(1.0, self.curvature_per_m), abs(1.0 / self.curvature_per_m)
        ahead_m, inwards_m = x_m - self.curve_start_m, radius_m - side * y_m
        s_m = self.curve_start_m + radius_m * np.arctan2(ahead_m, inwards_m)
        d_m = side * (radius_m - np.hypot(ahead_m, inwards_m))
        bends = ahead_m > 0.0
        return np.where(bends, s_m, x_m), np.where(bends, d_m, y_m)
