"""Compressed pictures, and two cameras that must come together."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from drivekd.demo.ros_workspace import ChildProcess

pytestmark = pytest.mark.ros

StartNode = Callable[..., ChildProcess]


def test_jpeg_pictures_are_answered_and_broken_ones_counted(messages: None, start_node: StartNode, tmp_path: Path) -> None:
    from probe import BLUE, Context, jpeg
    from sensor_msgs.msg import CompressedImage

    (tmp_path / "fake.json").write_text("{}")
    start_node(tmp_path, "compressed:=true", "max_frame_age_ms:=2000.0")
    with Context(compressed=True) as probe:

        def send(data: bytes) -> None:
            message = CompressedImage(header=probe.header(), format="jpeg", data=array("B", data))
            probe.cameras["CAM_FRONT"].publish(message)

        probe.until(lambda: bool(probe.answers), lambda: send(jpeg(BLUE)))
        seen = json.loads(probe.answers[-1].text.split(" ", 1)[1])["seen"]["CAM_FRONT"]
        assert seen == pytest.approx(BLUE, abs=3)
        for number, broken in enumerate((jpeg(BLUE)[:-200], b"", b"nothing")):
            send(broken)
            probe.until(lambda number=number: probe.diagnostics[-1:] and malformed(probe) == number + 1)
        probe.answers.clear()
        send(jpeg(BLUE))
        probe.until(lambda: len(probe.answers) == 3)


def stamp_ns(header) -> int:
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def malformed(probe) -> int:
    return int(probe.diagnostics[-1].get("dropped malformed", "0"))


def test_two_cameras_are_answered_together_or_reported(messages: None, start_node: StartNode, tmp_path: Path) -> None:
    from probe import BLUE, GREEN, Context

    (tmp_path / "fake.json").write_text(json.dumps({"cameras": ["CAM_FRONT", "CAM_BACK"]}))
    start_node(tmp_path, "tolerance_ms:=50.0", "max_frame_age_ms:=2000.0", "anchor:=CAM_BACK")
    with Context(cameras=("CAM_FRONT", "CAM_BACK")) as probe:
        apart_ms = {}  # by the anchor's stamp: how much older CAM_FRONT's picture is, by the stamps themselves

        def both() -> None:
            front, back = probe.header(age_ms=30), probe.header(age_ms=10)
            apart_ms[stamp_ns(back)] = (stamp_ns(back) - stamp_ns(front)) / 1e6
            probe.show(GREEN, "CAM_FRONT", front)
            probe.show(BLUE, "CAM_BACK", back)

        def of_pairs() -> list:
            """Answers to pictures that `both` sent: an anchor sent alone before may still find a camera within its tolerance."""
            return [answer for answer in probe.answers if stamp_ns(answer.header) in apart_ms]

        probe.until(lambda: probe.diagnostics[-1:] and "camera CAM_FRONT" in probe.diagnostics[-1])
        probe.until(lambda: "dropped missing:CAM_FRONT" in probe.diagnostics[-1], lambda: probe.show(BLUE, "CAM_BACK"))
        assert probe.diagnostics[-1]["camera CAM_FRONT"] == "missing"
        assert not probe.answers, "a frame set without one camera was answered"
        probe.until(lambda: bool(of_pairs()), both)
        answer = of_pairs()[-1]
        assert list(answer.cameras) == ["CAM_FRONT", "CAM_BACK"]
        front_ms, back_ms = answer.camera_ages_ms
        assert front_ms - back_ms == pytest.approx(apart_ms[stamp_ns(answer.header)], abs=0.01)  # float32 of some seconds
        assert '"CAM_FRONT": [0, 255, 0], "CAM_BACK": [0, 0, 255]' in answer.text
        probe.spin_for(0.3)  # CAM_FRONT's last picture is then out of tolerance
        alone = set()

        def apart() -> None:
            probe.show(GREEN, "CAM_FRONT", probe.header(age_ms=500))
            alone.add(stamp_ns(probe.show(BLUE, "CAM_BACK")))

        probe.until(lambda: "dropped stale:CAM_FRONT" in probe.diagnostics[-1], apart)
        assert not alone & {stamp_ns(answer.header) for answer in probe.answers}, "cameras out of tolerance were answered"


def test_a_publisher_of_another_qos_is_reported(messages: None, start_node: StartNode, tmp_path: Path) -> None:
    from probe import Context
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    (tmp_path / "fake.json").write_text("{}")
    start_node(tmp_path, "reliability:=reliable", "camera_topics:=[/other]")
    with Context() as probe:
        publisher = probe.create_publisher(Image, "/other", qos_profile_sensor_data)
        probe.until(lambda: probe.diagnostics[-1:] and "dropped incompatible_qos:CAM_FRONT" in probe.diagnostics[-1])
        probe.destroy_publisher(publisher)
