"""The one record that every reader makes and everything else takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Capability = Literal["perception", "reasoning", "planning"]
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)

AnswerKind = Literal["choice", "yesno", "open"]
ANSWER_KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


@dataclass(frozen=True)
class Sample:
    """One question about the images of one frame.

    source: "FILE, record N", for error messages. question: without image markers. answer: None for an unlabelled record.
    images: one per camera, in the order in which the model sees them. kind: how the answer is scored.
    topic: a finer name within the capability, free text. scene: what train and test must not share.
    """

    source: str
    capability: Capability
    question: str
    answer: str | None
    images: tuple[Path, ...]
    kind: AnswerKind = "open"
    topic: str = ""
    scene: str = ""
