"""The lifecycle node: parameters, bundle, subscriptions, one inference thread, publishers.

    configure   read parameters, verify and load the bundle, warm up, create publishers
    activate    subscribe, start the inference thread, serve ~/ask
    deactivate  stop the thread within a bound, unsubscribe
    cleanup     free the bundle
A hung or dead inference thread ends the program with exit code 1, for `respawn` in the launch file.

Advisory output, developed to no ASIL, never the sole input to actuation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from drivekd.errors import ConfigError, DrivekdError

from .answer.ask import AskServer
from .answer.inference import Worker
from .answer.outputs import AnswerPublishers, diagnostic_array
from .answer.pipeline import Pipeline, Session
from .input.conversions import CameraMessage
from .input.drops import DropCounts
from .input.ego_speed import EgoSpeed
from .input.inputs import Inputs, Mailbox
from .input.mailbox import FrameMailbox, FrameSet
from .state.health import Health
from .state.meter import Meter
from .state.parameters import declare_parameters, read_settings
from .state.settings import NodeSettings, resolved_cameras

STOP_TIMEOUT_S = 2.0  # a CPU session leaves at its next token; nav2's lifecycle manager waits 5 s for a transition
DIAGNOSTICS_PERIOD_S = 1.0

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
Load = Callable[[Path, str], Session]


def load_session(bundle: Path, backend: str) -> Session:
    """Load a verified bundle with drivekd's runtime. Raises BundleError."""
    from drivekd.runtime import load_bundle  # the engine's libraries: not at import

    return load_bundle(bundle, backend=backend)


@dataclass(frozen=True)
class Configured:
    """What exists from configure to cleanup."""

    settings: NodeSettings
    cameras: tuple[str, ...]
    ego_speed: EgoSpeed
    pipeline: Pipeline
    outputs: AnswerPublishers
    ask: AskServer


@dataclass(frozen=True)
class Active:
    """What exists from activate to deactivate."""

    mailbox: Mailbox
    worker: Worker
    inputs: Inputs


class DrivekdNode(LifecycleNode):
    """`load` makes the session of a bundle folder and a backend; tests give their own."""

    def __init__(self, *, load: Load = load_session, node_name: str = "drivekd") -> None:
        super().__init__(node_name)
        declare_parameters(self)
        self.failure = ""  # why the last transition or inference failed; one line, empty after a success
        self._load = load
        self._drops = DropCounts()
        self._meter = Meter()
        self._bundle = ExitStack()  # holds the session
        self._configured: Configured | None = None
        self._active: Active | None = None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)

    # rclpy turns any exception in a transition into a silent ERROR: they catch and log what can be expected.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read, load, warm up."""
        try:
            self._configured = self._configure(read_settings(self))
        except DrivekdError as error:
            self._fail(f"cannot configure: {error}")
            self._free()
            return FAILURE
        self.failure = ""
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start to infer."""
        assert self._configured, "activate follows configure"
        enabled = super().on_activate(state)
        self._active = self._activate(self._configured)
        self._active.worker.start()
        return enabled

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop inferring. ERROR when the thread does not come back."""
        stopped = self.stop()
        disabled = super().on_deactivate(state)
        return disabled if stopped else TransitionCallbackReturn.ERROR

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the bundle and the publishers."""
        self._free()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state: stop, then free."""
        self.stop()
        self._free()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        self.stop()
        self._free()
        return super().on_error(state)

    def start(self) -> bool:
        """Configure and activate, as a lifecycle manager would. False when either fails; `failure` says why."""
        return bool(self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS)

    def stop(self) -> bool:
        """Stop inferring within STOP_TIMEOUT_S; True when nothing runs any more."""
        active, self._active = self._active, None
        if active is None:
            return True
        active.inputs.close()
        stopped = active.worker.stop(STOP_TIMEOUT_S)
        if self._configured is not None:
            self._configured.ask.shut()
        if not stopped:
            self._fail(f"inference did not stop within {STOP_TIMEOUT_S} s; its session is abandoned, not freed")
            self._bundle.pop_all()  # freeing it under a running inference would crash
        return stopped

    @property
    def fatal(self) -> bool:
        """Active, but nothing will be answered any more."""
        if self._active is None or self._configured is None:
            return False
        worker, hung_after_s = self._active.worker, self._configured.settings.hung_after_s
        return not worker.alive or 0 < hung_after_s < worker.busy_s()

    def _configure(self, settings: NodeSettings) -> Configured:
        started_s = time.monotonic()
        session = self._bundle.enter_context(self._load(Path(settings.bundle), settings.backend))
        cameras = resolved_cameras(settings, tuple(session.cameras))
        for camera, topic in settings.topics(cameras).items():
            self._check_topic(camera, topic)  # now: rclpy would swallow the error in activate
        ego_speed = EgoSpeed(settings.ego_speed_mps, settings.twist_tolerance_ms)
        pipeline = Pipeline(
            session,
            ego_speed,
            capabilities=settings.capabilities,
            compressed=settings.compressed,
            deadline_ms=settings.deadline_ms,
            twist_required=settings.twist_required,
        )
        pipeline.warm_up(cameras)
        self.get_logger().info(
            f"bundle {session.bundle_digest} on {session.backend}, cameras {', '.join(cameras)}, "
            f"ready in {time.monotonic() - started_s:.1f} s; advisory output, never the sole input to actuation"
        )
        outputs = AnswerPublishers(self, pipeline.capabilities)
        return Configured(settings, cameras, ego_speed, pipeline, outputs, AskServer(self, pipeline))

    def _check_topic(self, camera: str, topic: str) -> None:
        try:
            self.resolve_topic_name(topic)
        except rclpy_implementation.RCLError as error:
            raise ConfigError(f"parameter camera_topics: '{topic}' of {camera} is no topic name ({error})") from error

    def _activate(self, configured: Configured) -> Active:
        settings, cameras = configured.settings, configured.cameras
        mailbox: Mailbox = FrameMailbox(
            cameras,
            anchor=settings.anchor or cameras[0],
            tolerance_ms=settings.tolerance_ms,
            max_frame_age_ms=settings.max_frame_age_ms,
            clock_ns=lambda: int(self.get_clock().now().nanoseconds),
            drops=self._drops,
        )

        def infer(frame_set: FrameSet[CameraMessage]) -> None:
            self._infer(frame_set, configured, worker)

        worker = Worker(mailbox, infer, drops=self._drops, on_error=self._fail)
        configured.ask.open(worker, mailbox)
        inputs = Inputs(
            self,
            settings.topics(cameras),
            compressed=settings.compressed,
            reliability=settings.reliability,
            mailbox=mailbox,
            ego_speed=configured.ego_speed,
            drops=self._drops,
        )
        return Active(mailbox, worker, inputs)

    def _infer(self, frame_set: FrameSet[CameraMessage], configured: Configured, worker: Worker) -> None:
        """One frame set, on the inference thread."""
        pipeline = configured.pipeline
        result = pipeline.answer_frame(frame_set, lambda capability, piece: worker.check_stop())
        worker.check_stop()
        configured.outputs.publish(result, frame_set.frames[frame_set.anchor].message.header, pipeline.session)
        self.failure = ""
        age_ms = (self.get_clock().now().nanoseconds - frame_set.stamp_ns) / 1e6
        self._meter.add(time.monotonic(), result.stages_ms["total"], age_ms)

    def _free(self) -> None:
        configured, self._configured = self._configured, None
        if configured is not None:
            configured.ask.close()
            configured.outputs.close()
        self._bundle.close()

    def _fail(self, message: str) -> None:
        self.failure = " ".join(message.split())
        self.get_logger().error(self.failure)

    def _health(self) -> Health:
        active, configured = self._active, self._configured
        return Health(
            active=active is not None,
            reading=self._meter.read(time.monotonic()),
            drops=self._drops.snapshot(),
            absent=active.mailbox.absent() if active else {},
            busy_s=active.worker.busy_s() if active else 0.0,
            hung_after_s=configured.settings.hung_after_s if configured else 0.0,
            alive=active.worker.alive if active else False,
            last_error=self.failure,
            backend=configured.pipeline.session.backend if configured else "",
            bundle_digest=configured.pipeline.session.bundle_digest if configured else "",
        )

    def _publish_diagnostics(self) -> None:
        self._diagnostics.publish(diagnostic_array(self._health(), self))
