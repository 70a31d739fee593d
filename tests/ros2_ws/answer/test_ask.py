"""The Ask action: feedback that grows, cancel, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from drivekd.demo.ros_workspace import ChildProcess

pytestmark = pytest.mark.ros

StartNode = Callable[..., ChildProcess]

SUCCEEDED, CANCELED, ABORTED = 4, 5, 6  # action_msgs/GoalStatus


@pytest.fixture(scope="module")
def desk(messages: None, start_module_node: StartNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    from probe import Context

    bundle = tmp_path_factory.mktemp("bundle")
    (bundle / "fake.json").write_text(json.dumps({"delay_s": 0.05, "words": 8, "fail_on_red": True}))
    start_module_node(bundle, "max_frame_age_ms:=1000.0")
    with Context() as probe:
        desk = Desk(probe)
        assert desk.client.wait_for_server(15)
        yield desk
        desk.client.destroy()


class Desk:
    """An action client beside the probe."""

    def __init__(self, probe) -> None:
        from drivekd_msgs.action import Ask
        from rclpy.action import ActionClient

        self.probe = probe
        self.kind = Ask
        self.client = ActionClient(probe, Ask, "/drivekd/ask")
        self.feedback: list[str] = []

    def send(self, question: str, deadline_ms: float = 0.0):
        goal = self.kind.Goal(question=question, deadline_ms=deadline_ms)
        sent = self.client.send_goal_async(goal, lambda message: self.feedback.append(message.feedback.partial_text))
        self.probe.until(sent.done)
        return sent.result()

    def result(self, handle):
        future = handle.get_result_async()
        self.probe.until(future.done)
        return future.result().status, future.result().result

    def fresh_picture(self) -> None:
        from probe import GREEN

        self.feedback.clear()
        self.probe.answers.clear()
        self.probe.until(lambda: bool(self.probe.answers), lambda: self.probe.show(GREEN))


def test_without_a_picture_there_is_an_error_and_no_answer(desk: Desk) -> None:
    desk.probe.spin_for(1.2)  # older than max_frame_age_ms a picture is none
    status, result = desk.result(desk.send("What is ahead?"))
    assert status == ABORTED
    assert (result.finish_reason, result.valid) == ("error", False)
    assert result.error == "there is no complete frame set to look at (CAM_FRONT missing)"


def test_a_question_is_answered_about_the_newest_picture(desk: Desk) -> None:
    desk.fresh_picture()
    assert desk.probe.answers_to((0, 0, 255))
    status, result = desk.result(desk.send("What is ahead?"))
    assert status == SUCCEEDED
    assert (result.valid, result.finish_reason, result.error) == (True, "stop", "")
    assert result.header in desk.probe.shown
    assert '"question": "What is ahead?"' in result.text
    assert '"CAM_FRONT": [0, 0, 255]' in result.text
    desk.probe.until(lambda: len(desk.feedback) == 8)
    assert desk.feedback[:2] == ["word0 ", "word0 word1 "]


def test_cancel_ends_it_within_a_token_and_a_second_question_is_rejected_meanwhile(desk: Desk) -> None:
    desk.fresh_picture()
    handle = desk.send("Tell me everything.")
    assert handle.accepted
    assert not desk.send("Me too!").accepted
    desk.probe.until(lambda: bool(desk.feedback))
    handle.cancel_goal_async()
    status, result = desk.result(handle)
    assert status == CANCELED
    assert (result.finish_reason, result.valid) == ("cancelled", False)
    assert result.text.startswith("word0 ")
    assert "seen" not in result.text, "it ran to its end"
    desk.fresh_picture()  # frames are answered again


@pytest.mark.parametrize(("question", "deadline_ms"), [("", 0.0), ("  ", 0.0), ("What?", -1.0)])
def test_an_empty_question_or_negative_deadline_is_rejected(desk: Desk, question: str, deadline_ms: float) -> None:
    assert not desk.send(question, deadline_ms).accepted


def test_a_failing_engine_aborts_with_its_words(desk: Desk) -> None:
    desk.fresh_picture()
    desk.probe.spin_for(0.6)
    shown = desk.probe.show((255, 0, 0))
    assert shown
    desk.probe.spin_for(0.3)
    status, result = desk.result(desk.send("What is ahead?"))
    assert (status, result.finish_reason) == (ABORTED, "error")
    assert "refused a red picture" in result.error


def test_an_inactive_node_rejects_and_a_waiting_question_is_ended_by_deactivation(desk: Desk) -> None:
    desk.fresh_picture()
    handle = desk.send("Tell me everything.")
    assert handle.accepted
    assert desk.probe.transition(4)
    status, result = desk.result(handle)
    assert (status, result.finish_reason) == (ABORTED, "error")
    assert not desk.send("And now?").accepted
    assert desk.probe.transition(3)
    desk.fresh_picture()
