"""The parts between a frame set and what is published: speed, deadline, settings, meter, health. No ROS."""

from __future__ import annotations

import math
from array import array
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
from drivekd_ros.answer.pipeline import Pipeline
from drivekd_ros.input.drops import Dropped
from drivekd_ros.input.ego_speed import EgoSpeed
from drivekd_ros.input.mailbox import Frame, FrameSet
from drivekd_ros.state.health import Health, Level
from drivekd_ros.state.meter import Meter
from drivekd_ros.state.settings import SPECS, NodeSettings, resolved_cameras, settings_from_values
from fake_node import FakeSession

from drivekd.errors import ConfigError, DataError

MS = 1_000_000  # ns


def frame_set(colour: tuple[int, int, int] = (1, 2, 3), stamp_ns: int = 10_000 * MS) -> FrameSet:
    data = array("B", np.full((4, 6, 3), colour, np.uint8).tobytes())
    message = SimpleNamespace(header=None, height=4, width=6, step=18, encoding="rgb8", data=data)
    return FrameSet("CAM_FRONT", stamp_ns, {"CAM_FRONT": Frame(stamp_ns, message)})


class SpySession(FakeSession):
    """Keeps what it was asked with."""

    def answer_ask(self, images, ask):
        self.asked = ask
        return super().answer_ask(images, ask)


def pipeline(session: FakeSession, **changes: object) -> Pipeline:
    options: dict[str, object] = {"capabilities": (), "compressed": False, "deadline_ms": 0.0, "twist_required": False}
    return Pipeline(session.__enter__(), EgoSpeed(4.26, 100), **(options | changes))


def test_answers_tell_the_picture_and_the_time_it_took() -> None:
    result = pipeline(FakeSession()).answer_frame(frame_set((9, 8, 7)), lambda capability, piece: None)
    assert list(result.answers) == ["perception", "reasoning", "planning"]
    assert '"CAM_FRONT": [9, 8, 7]' in result.answers["planning"].text
    assert result.stages_ms["total"] >= result.stages_ms["image_decode"]
    assert result.stages_ms["vision"] == 1.5


@pytest.mark.parametrize(("own", "told"), [(8, 4), (8.0, 4.3)])
def test_the_speed_is_told_as_the_bundle_was_trained(own: float, told: float) -> None:
    session = SpySession(variables={"ego_speed_mps": own})
    result = pipeline(session).answer_frame(frame_set(), lambda capability, piece: None)
    assert session.asked.variables == {"ego_speed_mps": told}
    assert isinstance(session.asked.variables["ego_speed_mps"], type(own))
    assert result.speed == (told, False)


def test_a_required_speed_that_is_missing_drops_the_frame() -> None:
    with pytest.raises(Dropped, match="no_speed"):
        pipeline(FakeSession(), twist_required=True).answer_frame(frame_set(), lambda capability, piece: None)


def test_a_bundle_without_a_speed_in_its_questions_is_told_none() -> None:
    session = SpySession(variables={})
    pipeline(session).answer_frame(frame_set(), lambda capability, piece: None)
    assert session.asked.variables == {}


def test_the_deadline_is_what_decoding_left_of_it() -> None:
    session = SpySession()
    pipeline(session, deadline_ms=500.0).answer_frame(frame_set(), lambda capability, piece: None)
    assert 0 < session.asked.deadline_ms < 500
    pipeline(session, deadline_ms=1e-6).answer_frame(frame_set(), lambda capability, piece: None)
    assert session.asked.deadline_ms == 1.0
    pipeline(session).answer_frame(frame_set(), lambda capability, piece: None)
    assert session.asked.deadline_ms is None


def test_a_question_goes_to_the_session_alone() -> None:
    session = SpySession()
    result = pipeline(session).answer_question(frame_set(), "What is red?", 0.0, lambda capability, piece: None)
    assert (session.asked.question, session.asked.capabilities) == ("What is red?", None)
    assert len(result.answers) == 1


def test_the_camera_is_named_in_the_error_of_a_bad_picture() -> None:
    broken = frame_set()
    broken.frames["CAM_FRONT"].message.step = 1
    with pytest.raises(DataError, match="CAM_FRONT: step is 1"):
        pipeline(FakeSession()).answer_frame(broken, lambda capability, piece: None)


@pytest.mark.parametrize(
    ("stamp_ms", "expected"),
    [(99, (7.0, False)), (100, (1.0, True)), (149, (1.0, True)), (150, (2.0, True)), (250, (2.0, True)), (251, (7.0, False))],
)
def test_the_newest_speed_at_or_before_the_frame_counts(stamp_ms: int, expected: tuple[float, bool]) -> None:
    speed = EgoSpeed(7.0, tolerance_ms=100)
    assert speed.put(150 * MS, 2.0)
    assert speed.put(100 * MS, 1.0)
    assert speed.at(stamp_ms * MS) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_speed_that_is_no_number_is_not_kept(value: float) -> None:
    speed = EgoSpeed(7.0, tolerance_ms=100)
    assert not speed.put(0, value)
    assert speed.at(0) == (7.0, False)


def test_the_meter_reads_rate_and_percentiles_and_decays() -> None:
    meter = Meter()
    assert meter.read(0).answered == 0
    for number in range(101):
        meter.add(number * 0.1, latency_ms=float(number), age_ms=5.0)
    reading = meter.read(10.0)
    assert reading.answered == 101
    assert reading.rate_hz == pytest.approx(10, rel=0.02)
    assert (reading.p50_ms, reading.p99_ms, reading.age_ms) == (50, 99, 5)
    assert meter.read(15.0).rate_hz == pytest.approx(5, rel=0.05)
    assert meter.read(1000.0).rate_hz == 0


def health(**changes: object) -> Health:
    meter = Meter()
    meter.add(0.0, 10.0, 20.0)
    values = {"active": True, "reading": meter.read(0.0), "drops": {}, "absent": {}, "busy_s": 0.0, "hung_after_s": 1.0}
    values |= {"alive": True, "last_error": "", "backend": "ort-cpu", "bundle_digest": "sha256:0"}
    return Health(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, Level.OK, "answering"),
        ({"active": False}, Level.OK, "not active"),
        ({"active": False, "last_error": "no bundle"}, Level.ERROR, "no bundle"),
        ({"reading": Meter().read(0.0)}, Level.WARN, "no answer yet"),
        ({"absent": {"LEFT": "stale"}}, Level.WARN, "LEFT stale"),
        ({"absent": {"LEFT": "stale"}, "last_error": "engine"}, Level.ERROR, "engine"),
        ({"busy_s": 1.5, "last_error": "engine"}, Level.ERROR, "hangs: 1.5 s"),
        ({"busy_s": 1.5, "hung_after_s": 0.0}, Level.OK, "answering"),
        ({"alive": False}, Level.ERROR, "thread has ended"),
    ],
)
def test_the_worst_fault_gives_the_level(changes: dict[str, object], level: Level, words: str) -> None:
    found, text = health(**changes).level()
    assert found == level
    assert words in text


def test_the_parameter_table_and_the_settings_have_the_same_names() -> None:
    assert [spec.name for spec in SPECS] == [field.name for field in fields(NodeSettings)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "bundle is empty"),
        ({"bundle": "b", "reliability": "sometimes"}, "'sometimes' is none of best_effort, reliable"),
        ({"bundle": "b", "tolerance_ms": -1.0}, "tolerance_ms: -1.0 is outside 0.0 to 5000.0"),
        ({"bundle": "b", "deadline_ms": math.nan}, "deadline_ms: nan is outside"),
        ({"bundle": "b", "cameras": ["A", "A"]}, "a name stands twice in A, A"),
    ],
)
def test_bad_settings_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings_from_values(values)


@pytest.mark.parametrize(
    ("values", "bundle_cameras", "words"),
    [
        ({"cameras": ["REAR"]}, ("FRONT",), "does not know 'REAR'; it has FRONT"),
        ({}, (), r"cameras is empty, and the bundle states none; give their names, such as cameras:=\[CAM_FRONT\]"),
        ({"cameras": list("ABCDEFG")}, (), "found 7"),
        ({"anchor": "REAR"}, ("FRONT",), "anchor: 'REAR' is none of FRONT"),
    ],
)
def test_cameras_that_do_not_fit_the_bundle_are_refused(values: dict, bundle_cameras: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolved_cameras(settings_from_values({"bundle": "b", **values}), bundle_cameras)


def test_topics_pair_with_cameras() -> None:
    settings = settings_from_values({"bundle": "b", "camera_topics": ["/a", "/b"]})
    assert settings.topics(("FRONT", "REAR")) == {"FRONT": "/a", "REAR": "/b"}
    with pytest.raises(ConfigError, match="2 topics for 1 cameras"):
        settings.topics(("FRONT",))
    swapped = settings_from_values({"bundle": "b", "camera_topics": ["/car/REAR/image", "/car/FRONT/image"]})
    with pytest.raises(ConfigError, match="'/car/REAR/image' stands where FRONT is in FRONT, REAR, but names REAR"):
        swapped.topics(("FRONT", "REAR"))
    assert swapped.topics(("REAR", "FRONT")) == {"REAR": "/car/REAR/image", "FRONT": "/car/FRONT/image"}
    plain = settings_from_values({"bundle": "b", "compressed": True})
    assert plain.topics(("FRONT",)) == {"FRONT": "~/input/FRONT/image/compressed"}
