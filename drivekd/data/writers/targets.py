"""A Sample in the formats of other tools. What a format cannot hold is refused by name, never left out in silence.

llama-factory   {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}], "images"}: its default columns
ms-swift        {"messages": [{"role", "content"}], "images"}
drivebench      {scene_token, frame_token, question_type, question, answer, tag, image_path: {camera: path}}, normalised tags
drivelm         scene -> key_frames -> frame -> {QA, image_paths}, pixel tags; gathered in memory, since it is nested

The first two keep question_type and meta, which those tools do not read and which bring the records back here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drivekd.data.readers.questions import CAPABILITY_OF_TOPIC, QUESTION_TYPES
from drivekd.errors import DataError
from drivekd.sample import Sample
from drivekd.tags import pixel_tags

from .records import drivekd_record, written_path


def ms_swift_record(sample: Sample, folder: Path, raw: object = None) -> dict[str, Any]:
    """Drive-KD's record is ms-swift's with two more keys."""
    return drivekd_record(sample, folder, raw)


def llama_factory_record(sample: Sample, folder: Path, raw: object = None) -> dict[str, Any]:
    """LLaMA-Factory's default (ShareGPT) columns."""
    record = drivekd_record(sample, folder, raw)
    names = {"user": "human", "assistant": "gpt"}
    messages: Any = record.pop("messages")
    return {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in messages], **record}


def drivebench_record(sample: Sample, folder: Path, raw: object = None) -> dict[str, Any]:
    """Raises DataError naming what DriveBench needs and the sample does not say."""
    return {
        "scene_token": _needed(sample, "scene"),
        "frame_token": _needed(sample, "frame"),
        "question_type": _topic(sample),
        "question": sample.question,
        "answer": sample.answer or "",
        "tag": list(sample.tag),
        "image_path": _image_paths(sample, folder),
    }


def drivelm_document(samples: Iterable[Sample], folder: Path) -> dict[str, Any]:
    """All samples as one DriveLM document; a frame's image_paths are those of all its questions. Raises DataError."""
    scenes: dict[str, Any] = {}
    for sample in samples:
        scene = scenes.setdefault(_needed(sample, "scene"), {"key_frames": {}})
        frame = scene["key_frames"].setdefault(
            _needed(sample, "frame"), {"QA": {topic: [] for topic in QUESTION_TYPES}, "image_paths": {}}
        )
        pair: dict[str, Any] = {"Q": pixel_tags(sample.question), "A": pixel_tags(sample.answer or "")}
        frame["QA"][_topic(sample)].append(pair | ({"tag": list(sample.tag)} if sample.tag else {}))
        for camera, path in _image_paths(sample, folder).items():
            if frame["image_paths"].setdefault(camera, path) != path:
                raise DataError(f"{sample.source}: {camera} of frame {sample.frame} is another picture than before: {path}")
    return scenes


def _needed(sample: Sample, name: str) -> str:
    value = str(getattr(sample, name))
    if not value:
        raise DataError(f"{sample.source}: names no {name} (meta.{name}), which this format needs")
    return value


def _topic(sample: Sample) -> str:
    topic = sample.topic if sample.topic in QUESTION_TYPES else sample.capability
    if CAPABILITY_OF_TOPIC.get(topic) != sample.capability:
        raise DataError(
            f"{sample.source}: meta.topic: a {sample.capability} question needs prediction or behavior here, "
            f"found {sample.topic!r}"
        )
    return topic


def _image_paths(sample: Sample, folder: Path) -> dict[str, str]:
    if len(sample.cameras) != len(sample.images):
        raise DataError(
            f"{sample.source}: names no cameras of its {len(sample.images)} pictures (meta.cameras), which this format needs"
        )
    return {camera: written_path(image, folder) for camera, image in zip(sample.cameras, sample.images, strict=True)}
