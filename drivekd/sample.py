"""The one record that every reader makes and everything else takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Capability = Literal["perception", "reasoning", "planning"]
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)

AnswerForm = Literal["choice", "yesno", "open"]
ANSWER_FORMS: tuple[AnswerForm, ...] = get_args(AnswerForm)

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


@dataclass(frozen=True)
class Sample:
    """One question about the images of one frame.

    source: "FILE, record N", for error messages. question: without image markers. answer: None for an unlabelled record.
    images: one per camera, in the order in which the model sees them; cameras: their names, () = the record does not say.
    answer_form: how the answer is scored; records call it meta.kind. topic: what the question is about, a finer name within the
    capability, free text. scene: what train and test must not share; frame: one moment of it. id: the question's in the data set
    that it is from (DriveLM's scene_frame_index). tag: DriveBench's numbers. hop: NuScenes-QA's. structured: what the record
    itself gives as the answer in JSON (compact, see drivekd/structured), None where it gives none.
    """

    source: str
    capability: Capability
    question: str
    answer: str | None
    images: tuple[Path, ...]
    answer_form: AnswerForm = "open"
    topic: str = ""
    scene: str = ""
    frame: str = ""
    cameras: tuple[str, ...] = ()
    id: str = ""
    tag: tuple[int, ...] = ()
    hop: int | None = None
    structured: str | None = None
