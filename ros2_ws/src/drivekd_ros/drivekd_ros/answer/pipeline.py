"""From a frame set to answers: decode, look up the speed, ask the session. No rclpy here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from drivekd.runtime.answers.answer import Answer
from drivekd.runtime.answers.ask import Ask, OnText
from drivekd_ros.input.conversions import CameraMessage, RGBImage, rgb_from_compressed, rgb_from_image
from drivekd_ros.input.drops import Dropped
from drivekd_ros.input.ego_speed import EgoSpeed, Speed
from drivekd_ros.input.mailbox import FrameSet

MIN_DEADLINE_MS = 1.0  # late already: the session answers with finish_reason "deadline" rather than not at all

SPEED = "ego_speed_mps"  # the one template variable that the node fills


class Session(Protocol):
    """What the node needs of drivekd.runtime's session; tests give a smaller one."""

    capabilities: tuple[str, ...]
    cameras: tuple[str, ...]
    variables: dict[str, Any]
    bundle_digest: str
    backend: str
    timings_ms: dict[str, float]

    def answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        """Answers by capability about uint8 images [H, W, 3] by camera."""
        ...

    def __enter__(self) -> Session:
        """Acquire the engine."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Free the engine."""
        ...


@dataclass(frozen=True)
class FrameAnswers:
    """Everything to publish about one frame set. stages_ms: where the time went, "total" = taken to answered."""

    answers: dict[str, Answer]
    frame_set: FrameSet[CameraMessage]
    speed: Speed
    stages_ms: dict[str, float]


class Pipeline:
    """Answers frame sets with one session. deadline_ms 0: none. twist_required: no answer without a measured speed.

    Use from one thread.
    """

    def __init__(
        self,
        session: Session,
        ego_speed: EgoSpeed,
        *,
        capabilities: Sequence[str],
        compressed: bool,
        deadline_ms: float,
        twist_required: bool,
    ) -> None:
        self.session = session
        self._ego_speed = ego_speed
        self.capabilities = tuple(capabilities) or session.capabilities
        self._compressed = compressed
        self._deadline_ms = deadline_ms
        self._twist_required = twist_required

    def warm_up(self, cameras: Sequence[str]) -> None:
        """One inference on grey pictures: the first one allocates and is slow. Raises DrivekdError as answering does."""
        grey = {camera: np.full((64, 64, 3), 128, np.uint8) for camera in cameras}
        speed = self._told(self._ego_speed.at(0))
        self.session.answer_ask(grey, Ask(capabilities=self.capabilities, variables=self._variables(speed)))

    def answer_frame(self, frame_set: FrameSet[CameraMessage], on_text: OnText) -> FrameAnswers:
        """Answer all capabilities. Raises DataError for an unusable image, DrivekdError when inference fails, Dropped."""
        ask = Ask(capabilities=self.capabilities, deadline_ms=self._deadline_ms or None, on_text=on_text)
        return self._answer(frame_set, ask)

    def answer_question(
        self, frame_set: FrameSet[CameraMessage], question: str, deadline_ms: float, on_text: OnText
    ) -> FrameAnswers:
        """Answer one free question; the single answer stands under whatever name the session gives it."""
        return self._answer(frame_set, Ask(question=question, deadline_ms=deadline_ms or None, on_text=on_text))

    def _answer(self, frame_set: FrameSet[CameraMessage], ask: Ask) -> FrameAnswers:
        """The ask's deadline counts from now; the session has what decoding the images leaves of it."""
        started_s = time.monotonic()
        speed = self._told(self._ego_speed.at(frame_set.stamp_ns))
        if self._twist_required and not speed.measured:
            raise Dropped("no_speed")
        images = {camera: self._image(camera, frame.message) for camera, frame in frame_set.frames.items()}
        decoded_ms = (time.monotonic() - started_s) * 1e3
        left_ms = None if ask.deadline_ms is None else max(ask.deadline_ms - decoded_ms, MIN_DEADLINE_MS)
        answers = self.session.answer_ask(images, replace(ask, variables=self._variables(speed), deadline_ms=left_ms))
        total_ms = (time.monotonic() - started_s) * 1e3
        stages_ms = {"image_decode": decoded_ms, **self.session.timings_ms, "total": total_ms}
        return FrameAnswers(answers, frame_set, speed, stages_ms)

    def _told(self, speed: Speed) -> Speed:
        """The speed as the model gets it: whole m/s when the bundle's own value is whole, as in its training questions."""
        whole = isinstance(self.session.variables.get(SPEED), int)
        return speed._replace(speed_mps=float(round(speed.speed_mps, None if whole else 1)))

    def _variables(self, speed: Speed) -> dict[str, object]:
        if SPEED not in self.session.variables:  # this bundle's questions name no speed
            return {}
        return {SPEED: int(speed.speed_mps) if isinstance(self.session.variables[SPEED], int) else speed.speed_mps}

    def _image(self, camera: str, message: CameraMessage) -> RGBImage:
        if self._compressed:
            return rgb_from_compressed(message, camera)  # type: ignore[arg-type]  # the subscription decides the type
        return rgb_from_image(message, camera)  # type: ignore[arg-type]
