"""Subscriptions of the node: camera topics into the mailbox, the twist into the speed history. Callbacks only hand over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from geometry_msgs.msg import TwistStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from .conversions import CameraMessage
from .drops import DropCounts
from .ego_speed import EgoSpeed
from .mailbox import FrameMailbox

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

Mailbox: TypeAlias = FrameMailbox[CameraMessage]


class Inputs:
    """Subscribes on construction, until `close`."""

    def __init__(
        self,
        node: LifecycleNode,
        topics: dict[str, str],
        *,
        compressed: bool,
        reliability: str,
        mailbox: Mailbox,
        ego_speed: EgoSpeed,
        drops: DropCounts,
    ) -> None:
        self._node = node
        self._mailbox = mailbox
        self._ego_speed = ego_speed
        self._drops = drops
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT,
        )
        kind = CompressedImage if compressed else Image
        # The twist first: the executor serves subscriptions in this order, and a frame's speed must be there before the frame.
        self._subscriptions = [node.create_subscription(TwistStamped, "~/input/twist", self._on_twist, qos_profile_sensor_data)]
        self._subscriptions += [
            node.create_subscription(kind, topic, self._camera(camera), qos, event_callbacks=self._events(camera))
            for camera, topic in topics.items()
        ]

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _camera(self, camera: str) -> Callable[[Image | CompressedImage], None]:
        def on_image(message: Image | CompressedImage) -> None:
            self._mailbox.put(camera, stamp_ns(message.header.stamp), message)

        return on_image

    def _on_twist(self, message: TwistStamped) -> None:
        if not self._ego_speed.put(stamp_ns(message.header.stamp), message.twist.linear.x):
            self._drops.add("twist_not_finite")

    def _events(self, camera: str) -> SubscriptionEventCallbacks:
        def on_incompatible_qos(event: object) -> None:
            self._drops.add(f"incompatible_qos:{camera}")
            self._node.get_logger().warning(
                f"{camera}: a publisher offers another QoS; set parameter reliability to best_effort ({event})"
            )

        return SubscriptionEventCallbacks(incompatible_qos=on_incompatible_qos)


def stamp_ns(stamp: object) -> int:
    """builtin_interfaces/Time -> ns."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)  # type: ignore[attr-defined]
