"""A peer of the node under test: publishes images and speeds, collects texts, answers and diagnostics."""

from __future__ import annotations

import io
import time
from array import array
from collections.abc import Callable
from functools import partial

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from drivekd_msgs.msg import Answer
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.srv import ChangeState, GetState
from PIL import Image as Picture
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String

TIMEOUT_S = 15.0  # a loaded machine starts a node in seconds

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class Probe(Node):
    """Spins only inside `until`, so a test sees every message in order."""

    def __init__(self, *, compressed: bool = False, cameras: tuple[str, ...] = ("CAM_FRONT",)) -> None:
        super().__init__("probe")
        kind, ending = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self.cameras = {name: self.create_publisher(kind, f"/drivekd/input/{name}/{ending}", 1) for name in cameras}
        self.twist = self.create_publisher(TwistStamped, "/drivekd/input/twist", 10)
        self.texts: dict[str, list[str]] = {name: [] for name in ("perception", "reasoning", "planning")}
        self.answers: list[Answer] = []
        self.diagnostics: list[dict[str, str]] = []
        for name in self.texts:
            self.create_subscription(String, f"/drivekd/{name}", partial(self._on_text, name), 10)
        self.create_subscription(Answer, "/drivekd/answer", self.answers.append, 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.spinner = SingleThreadedExecutor()
        self.spinner.add_node(self)

    def _on_text(self, name: str, message: String) -> None:
        self.texts[name].append(message.data)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        status = message.status[0]
        values = {pair.key: pair.value for pair in status.values}
        self.diagnostics.append(values | {"level": str(status.level[0]), "message": status.message})

    def until(self, done: Callable[[], bool], act: Callable[[], object] | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """Spin until done() is true, calling act() again and again: a peer that is seen is not yet matched."""
        due_s = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < due_s, f"timeout; last diagnostics: {self.diagnostics[-1:]}"
            if act is not None:
                act()
            again_s = time.monotonic() + 0.1
            while time.monotonic() < again_s and not done():
                self.spinner.spin_once(timeout_sec=0.02)

    def spin_for(self, duration_s: float) -> None:
        """Receive for a while."""
        due_s = time.monotonic() + duration_s
        while time.monotonic() < due_s:
            self.spinner.spin_once(timeout_sec=0.02)

    def header(self, age_ms: float = 0.0) -> Header:
        """A header stamped now, or a little earlier."""
        stamp_ns = self.get_clock().now().nanoseconds - int(age_ms * 1e6)
        header = Header(frame_id="camera_optical")
        header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
        return header

    def show(self, colour: tuple[int, int, int], camera: str = "CAM_FRONT", header: Header | None = None) -> Header:
        """Publish a plain picture 32x24 as rgb8; returns its header."""
        header = header or self.header()
        data = array("B", np.full((24, 32, 3), colour, np.uint8).tobytes())
        message = Image(header=header, height=24, width=32, encoding="rgb8", step=96, data=data)
        self.cameras[camera].publish(message)
        return header

    def answers_to(self, colour: tuple[int, int, int]) -> list[Answer]:
        """All answers to one picture of the colour, shown again until one is answered whole: a late or lost one is no failure.

        self.shown: their headers.
        """
        self.shown: list[Header] = []
        answers: list[Answer] = []

        def answered() -> bool:
            answers[:] = max(
                ([one for one in self.answers if one.header == header] for header in self.shown), key=len, default=[]
            )
            return len(answers) == len(self.texts)

        self.until(answered, lambda: self.shown.append(self.show(colour)))
        return answers

    def transition(self, number: int, timeout_s: float = TIMEOUT_S) -> bool:
        """Ask the node for a lifecycle transition; fails when there is no response."""
        client = self.create_client(ChangeState, "/drivekd/change_state")
        assert client.wait_for_service(TIMEOUT_S)
        request = ChangeState.Request()
        request.transition.id = number
        future = client.call_async(request)
        self.until(future.done, timeout_s=timeout_s)
        return bool(future.result().success)

    def state(self) -> str:
        """The node's lifecycle state."""
        client = self.create_client(GetState, "/drivekd/get_state")
        assert client.wait_for_service(TIMEOUT_S)
        future = client.call_async(GetState.Request())
        self.until(future.done)
        return str(future.result().current_state.label)


def jpeg(colour: tuple[int, int, int]) -> bytes:
    """A plain JPEG picture, 32x24."""
    buffer = io.BytesIO()
    Picture.fromarray(np.full((24, 32, 3), colour, np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


class Context:
    """rclpy started and stopped around one probe."""

    def __init__(self, **options: object) -> None:
        self.options = options

    def __enter__(self) -> Probe:
        rclpy.init()
        self.probe = Probe(**self.options)  # type: ignore[arg-type]
        return self.probe

    def __exit__(self, *_: object) -> None:
        self.probe.destroy_node()
        rclpy.try_shutdown()
