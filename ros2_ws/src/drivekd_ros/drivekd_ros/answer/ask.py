"""The Ask action: one free question about the newest frame set, partial text as feedback, cancel within one token.

Choice: a goal is executed on the inference thread and only its result goes back through the executor, so that neither
waits for the other and a single-threaded executor is enough. One goal at a time; a second is rejected.
"""

from __future__ import annotations

import threading
from functools import partial

from drivekd_msgs.action import Ask
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.lifecycle import LifecycleNode

from drivekd.errors import DrivekdError
from drivekd.runtime.answers.ask import OnText
from drivekd_ros.input.drops import Dropped
from drivekd_ros.input.inputs import Mailbox

from .inference import Stopped, Worker
from .pipeline import Pipeline


class AskServer:
    """Serves `~/ask` from construction until `close`; goals are accepted between `open` and `shut`."""

    def __init__(self, node: LifecycleNode, pipeline: Pipeline) -> None:
        self._node = node
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._desk: tuple[Worker, Mailbox] | None = None
        self._goal: ServerGoalHandle | None = None
        self._server = ActionServer(
            node,
            Ask,
            "~/ask",
            execute_callback=lambda goal: Ask.Result(),  # never called: _on_accepted decides when and what
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )

    def open(self, worker: Worker, mailbox: Mailbox) -> None:
        """Accept goals. `worker` is the thread that owns the pipeline's session."""
        self._desk = (worker, mailbox)

    def shut(self) -> None:
        """Accept no more goals and end one that still waits. The worker has stopped."""
        self._desk = None
        with self._lock:
            goal, self._goal = self._goal, None
        if goal is not None:
            goal.execute(partial(_finish, Ask.Result(finish_reason="error", error="the node was deactivated")))

    def close(self) -> None:
        """Stop serving."""
        self._server.destroy()

    def _on_goal(self, request: Ask.Goal) -> GoalResponse:
        refusal = ""
        if self._desk is None:
            refusal = "the node is not active"
        elif self._goal is not None:
            refusal = "another question is being answered"
        elif not request.question.strip() or request.deadline_ms < 0:
            refusal = "the question is empty or deadline_ms negative"
        if refusal:
            self._node.get_logger().warning(f"ask: rejected, {refusal}")
        return GoalResponse.REJECT if refusal else GoalResponse.ACCEPT

    def _on_accepted(self, goal: ServerGoalHandle) -> None:
        assert self._desk, "goals are accepted while open, on this thread"
        worker, mailbox = self._desk
        with self._lock:
            self._goal = goal
        worker.submit(partial(self._answer, goal, worker, mailbox))

    def _answer(self, goal: ServerGoalHandle, worker: Worker, mailbox: Mailbox) -> None:
        """Runs on the inference thread."""

        def on_text(_capability: str, piece: str) -> None:
            worker.check_stop()
            if goal.is_cancel_requested:
                raise Stopped
            result.text += piece
            goal.publish_feedback(Ask.Feedback(partial_text=result.text))

        result = Ask.Result(finish_reason="error", error="the node is stopping")
        try:
            if not goal.is_cancel_requested:
                self._fill(result, goal.request, mailbox, on_text)
        except DrivekdError as error:
            result.error = str(error)
        except Dropped as reason:
            result.error = f"the newest frame set is dropped: {reason}"
        except Stopped:
            pass
        with self._lock:
            if self._goal is not goal:  # shut meanwhile
                return
            self._goal = None
        goal.execute(partial(_finish, result))

    def _fill(self, result: Ask.Result, request: Ask.Goal, mailbox: Mailbox, on_text: OnText) -> None:
        frame_set = mailbox.peek()
        if frame_set is None:
            absent = ", ".join(f"{camera} {why}" for camera, why in mailbox.absent().items())
            result.error = f"there is no complete frame set to look at ({absent or 'no frame yet'})"
            return
        answered = self._pipeline.answer_question(frame_set, request.question, request.deadline_ms, on_text)
        answer = next(iter(answered.answers.values()))
        result.header = frame_set.frames[frame_set.anchor].message.header
        result.text, result.valid = answer.text, answer.valid
        result.finish_reason, result.error = answer.finish_reason, ""


def _finish(result: Ask.Result, goal: ServerGoalHandle) -> Ask.Result:
    """Runs on the executor: the goal's last state and its result."""
    if goal.is_cancel_requested:
        goal.canceled()
        result.finish_reason, result.error = "cancelled", ""
    elif result.finish_reason == "error":
        goal.abort()
    else:
        goal.succeed()
    return result
