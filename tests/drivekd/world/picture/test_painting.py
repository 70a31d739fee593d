"""The built-in world's pictures: boxes on their pixels, cues that survive 112 x 112 pixels, near over far, a road's geometry."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from drivekd.world import Scene, make_scene, render_frame
from drivekd.world.picture.camera import make_camera
from drivekd.world.picture.labels import look
from drivekd.world.picture.order import painter_order
from drivekd.world.scene.assembly import signal_bottom_m, signal_position_m
from drivekd.world.scene.road import Road
from drivekd.world.scene.scene import DAYLIGHTS, WEATHERS
from drivekd.world.scene.street import signal_lamp_height_m
from drivekd.world.staging import situation_of

SIZE_PX = (320, 180)


def test_boxes_hold_their_pixels() -> None:
    camera = make_camera("CAM_FRONT", SIZE_PX)
    checked = 0
    for seed in range(40):
        sight = look(make_scene(seed), camera)
        for label in sight.labels:
            rows, columns = np.nonzero(sight.ids == label.actor + 1)
            assert len(rows) == label.visible_px
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            slack = (seen - label.box_px) * [1, 1, -1, -1]
            assert slack.min() >= 0
            if label.visibility == 1.0:
                assert slack.max() == 0
                checked += 1
    assert checked > 50


def test_boxes_lie_on_the_painted_vehicle() -> None:
    """Repaint the vehicle ahead: what changes in the picture is inside its box, and fills much of it."""
    checked = 0
    for seed in range(60):
        scene = make_scene(seed)
        if scene.lead is None or scene.lead_state != "near" or scene.lead.kind == "truck" or scene.weather == "rain":
            continue
        index = scene.actors.index(scene.lead)
        other = replace(scene.lead, color="yellow" if scene.lead.color != "yellow" else "blue")
        repainted = replace(scene, actors=(*scene.actors[:index], other, *scene.actors[index + 1 :]))
        before, labels = render_frame(scene, "CAM_FRONT", SIZE_PX)
        after, _ = render_frame(repainted, "CAM_FRONT", SIZE_PX)
        rows, columns = np.nonzero(np.abs(before.astype(int) - after).max(axis=2) > 12)
        left, top, right, bottom = next(label.box_px for label in labels if label.actor == index)
        assert columns.min() >= left - 2 and columns.max() <= right + 2 and rows.min() >= top - 2 and rows.max() <= bottom + 2
        assert len(rows) > 0.2 * (right - left) * (bottom - top)
        checked += 1
    assert checked >= 10


@dataclass(frozen=True)
class _Lamp:
    """Colour [3] of a lamp's centre at 112 x 112, and the widest run of pixels there that share its hue."""

    color: np.ndarray
    width_px: int


def _lamp(picture: np.ndarray, scene: Scene, name: str) -> _Lamp:
    small = np.asarray(Image.fromarray(picture).resize((112, 112), Image.Resampling.BICUBIC), int)
    assert scene.signal_m is not None
    point = signal_position_m(scene, signal_lamp_height_m(name, signal_bottom_m(scene.signal_m)))
    camera = make_camera("CAM_FRONT", SIZE_PX)
    x_px, y_px = camera.to_pixels(camera.to_camera(point)) * 112 / np.array(SIZE_PX)
    row = small[int(y_px)]
    own, other = (0, 1) if name == "red" else (1, 0)
    hue = row[:, own] - row[:, other] > 50
    window = hue[max(0, int(x_px) - 6) : int(x_px) + 7]
    return _Lamp(row[int(x_px)], int(window.sum()))


def _scenes_with_signals(state: str) -> list[Scene]:
    """Two scenes for each daylight and weather."""
    by_look: dict[tuple[str, str], list[int]] = {}
    for seed in range(400, 1400):
        situation = situation_of(seed)
        if situation.signal == state:
            by_look.setdefault((situation.daylight, situation.weather), []).append(seed)
    assert len(by_look) == len(DAYLIGHTS) * len(WEATHERS)
    return [make_scene(seed) for seeds in by_look.values() for seed in seeds[:2]]


@pytest.mark.parametrize(("state", "unlit", "own", "other"), [("red", "green", 0, 1), ("green", "red", 1, 0)])
def test_signals_are_legible_at_112_pixels(state: str, unlit: str, own: int, other: int) -> None:
    for scene in _scenes_with_signals(state):
        picture, _ = render_frame(scene, "CAM_FRONT", SIZE_PX)
        lit, dark = _lamp(picture, scene, state), _lamp(picture, scene, unlit)
        where = (scene.seed, scene.daylight, scene.weather, lit, dark)
        assert lit.color[own] > 150 and lit.color[own] - lit.color[other] > 90, where
        assert lit.width_px >= 3, where
        assert lit.color[own] - dark.color[own] > 60 and abs(dark.color[own] - dark.color[other]) < 60, where


def test_night_is_darker_than_day() -> None:
    scene = make_scene(3)
    means = [render_frame(replace(scene, daylight=light), "CAM_FRONT", SIZE_PX)[0].mean() for light in DAYLIGHTS]
    assert means == sorted(means, reverse=True)


def test_painter_order_matches_the_first_thing_that_a_ray_meets() -> None:
    """Random disjoint rectangles, some long: along every ray from the eye, nearer ones are painted later."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        footprints = _disjoint_rectangles(rng)
        rank = np.argsort(painter_order(footprints, (0.0, 0.0)))
        for angle in rng.uniform(-np.pi, np.pi, 60).tolist():
            hits_m = _hits_m(footprints, angle)
            painted = rank[np.argsort(hits_m)][: np.isfinite(hits_m).sum()].tolist()
            assert painted == sorted(painted, reverse=True)


def _disjoint_rectangles(rng: np.random.Generator) -> np.ndarray:
    """Rows of vehicles of any length in seven lanes, slightly turned; none on the eye."""
    rectangles = []
    for lane in (-9.0, -6.0, -3.0, 3.0, 6.0, 9.0):
        x_m = -40.0
        while x_m < 40.0:
            length_m = float(rng.uniform(0.5, 14.0))
            center, turn = np.array([x_m + length_m / 2, lane]), float(rng.uniform(-0.03, 0.03))
            corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length_m / 2, float(rng.uniform(0.3, 1.1))]
            rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            rectangles.append(corners @ rotation + center)
            x_m += length_m + float(rng.uniform(0.5, 12.0))
    return np.array(rectangles)


def _hits_m(footprints: np.ndarray, angle: float) -> np.ndarray:
    """Distance from the origin to each rectangle along a ray, [P]; inf where it misses."""
    across = footprints @ [-np.sin(angle), np.cos(angle)]  # [P, 4], distance of each corner from the ray's line
    along = footprints @ [np.cos(angle), np.sin(angle)]
    next_across, next_along = np.roll(across, -1, axis=1), np.roll(along, -1, axis=1)
    crosses = (across > 0.0) != (next_across > 0.0)
    share = across / np.where(crosses, across - next_across, 1.0)
    met = along + share * (next_along - along)
    hits_m: np.ndarray = np.where(crosses & (met > 0.0), met, np.inf).min(axis=1)
    return hits_m


@pytest.mark.parametrize("curvature_per_m", [0.0, 1 / 45.0, -1 / 70.0])
def test_road_points_come_back(curvature_per_m: float) -> None:
    road = Road(num_lanes=3, ego_lane=1, curvature_per_m=curvature_per_m, curve_start_m=7.0)
    for s_m in (-30.0, 0.0, 6.0, 8.0, 25.0, 60.0):
        for d_m in (-9.0, 0.0, 3.5):
            x_m, y_m = road.to_world(s_m, d_m)
            back = road.from_world(np.array([x_m]), np.array([y_m]))
            assert np.allclose(np.ravel(back), [s_m, d_m], atol=1e-6)  # metres; float64 rounding
    assert road.to_world(60.0, 0.0)[1] * curvature_per_m >= 0.0  # positive curvature bends to the left
