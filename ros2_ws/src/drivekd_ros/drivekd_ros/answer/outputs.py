"""Publishers of the node: one text topic per capability, the typed answers, the diagnostics."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from drivekd_msgs.msg import Answer as AnswerMessage
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header, String

from drivekd_ros.state.health import Health

from .messages import answer_messages
from .pipeline import FrameAnswers, Session

DEPTH = 10  # texts are small; a slow reader still gets all of a frame set


class AnswerPublishers:
    """`~/CAPABILITY` (std_msgs/String) for each capability and `~/answer` (typed); silent while the node is not active."""

    def __init__(self, node: LifecycleNode, capabilities: tuple[str, ...]) -> None:
        self._node = node
        self._texts = {name: node.create_lifecycle_publisher(String, f"~/{name}", DEPTH) for name in capabilities}
        self._typed = node.create_lifecycle_publisher(AnswerMessage, "~/answer", DEPTH)

    def publish(self, result: FrameAnswers, header: Header, session: Session) -> None:
        """Publish one frame set's answers; texts that are not valid go out typed only, with valid = false."""
        for message in answer_messages(result, header, session):
            if message.valid:
                self._texts[message.capability].publish(String(data=message.text))
            self._typed.publish(message)

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in (*self._texts.values(), self._typed):
            self._node.destroy_lifecycle_publisher(publisher)
        self._texts.clear()


def diagnostic_array(health: Health, node: LifecycleNode) -> DiagnosticArray:
    """One status named after the node."""
    level, text = health.level()
    status = DiagnosticStatus(
        level=bytes([level]),
        name=f"{node.get_fully_qualified_name().lstrip('/')}: answers",
        message=text,
        hardware_id=health.backend,
        values=[KeyValue(key=key, value=value) for key, value in health.values().items()],
    )
    return DiagnosticArray(header=Header(stamp=node.get_clock().now().to_msg()), status=[status])
