"""Evaluation folders as `drivekd eval` leaves them, made in milliseconds: samples with pictures, answers, reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from drivekd.answered import Answered, Given
from drivekd.evaluate.predictions import Line
from drivekd.evaluate.scoring import score
from drivekd.sample import CAMERAS, Sample

SIGNAL = "What does the signal show? Please select the correct answer from the following options: A. Red. B. Green. C. None."
WAY = "Which way does the ego vehicle go? Please select the correct answer from the following options: A. Left. B. Right."
NEAR = "Is a vehicle near?"
OBJECTS = "What are the important objects?"

Model = Callable[[Sample, np.random.Generator], str]


def pictures(folder: Path, scenes: int) -> dict[int, tuple[Path, ...]]:
    """Two cameras' pictures a scene."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for scene in range(scenes):
        paths = tuple(folder / f"{scene}-{camera}.jpg" for camera in CAMERAS[:2])
        for index, path in enumerate(paths):
            colour = np.full((90, 160, 3), [40 * (scene % 6), 90, 120 * index], np.uint8)
            Image.fromarray(colour).save(path)
        found[scene] = paths
    return found


def samples(folder: Path, scenes: int = 12) -> list[Sample]:
    """Four questions a scene: two choices, a yes or no, and an open one with tags."""
    shown = pictures(folder / "pictures", scenes)
    made = []
    for scene in range(scenes):
        tag = f"<c1,CAM_FRONT,{0.1 + 0.05 * (scene % 10):.4f},0.5000>"
        letter, way, near = "ABC"[scene % 3], "AB"[scene % 2], ("Yes.", "No.")[scene % 2]
        for capability, topic, form, question, answer in (
            ("perception", "signal", "choice", SIGNAL, letter),
            ("perception", "objects", "open", OBJECTS, f"There is a van, {tag}."),
            ("reasoning", "near", "yesno", NEAR, near),
            ("planning", "way", "choice", WAY, way),
        ):
            made.append(
                Sample(
                    source=f"test.json, record {len(made) + 1}",
                    capability=capability,  # type: ignore[arg-type]
                    question=question,
                    answer=answer,
                    images=shown[scene],
                    answer_form=form,  # type: ignore[arg-type]
                    topic=topic,
                    scene=f"scene-{scene}",
                    frame=f"frame-{scene}",
                    cameras=CAMERAS[:2],
                )
            )
    return made


def right_in(share: float, wrong: str = "Perhaps.") -> Model:
    """A model that gives the true answer in so many of its answers, else `wrong`."""
    return lambda sample, rng: (sample.answer or "") if rng.random() < share else wrong


def evaluation(
    folder: Path, asked: Sequence[Sample], model: Model, *, settings: Sequence[str] = ("clean",), seed: int = 0, name: str = "a"
) -> Path:
    """A finished evaluation's folder: predictions.jsonl, evaluation.json, a report for each setting."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines: list[Line] = []
    for setting in settings:
        answered = [Answered(sample, Given(model(sample, rng), "stop", 5, -float(rng.random())), setting) for sample in asked]
        lines += [Line(index, one) for index, one in enumerate(answered)]
        report = score(answered, answerer=f"runs/{name}/final", digest="sha256:0")
        file = "report.json" if len(settings) == 1 else f"report.{setting}.json"
        (folder / file).write_text(json.dumps(report.to_json()), encoding="utf-8")
    write_lines(folder, lines)
    told = {
        "model": f"runs/{name}/final",
        "data": "data/test.json",
        "began": "2026-01-01T00:00:00+00:00",
        "versions": {"drivekd": "1"},
    }
    identity = {"format": 1, "is": {"model": "sha256:0", "data": "sha256:1", "precision": "fp32"}, "told": told}
    (folder / "evaluation.json").write_text(json.dumps(identity), encoding="utf-8")
    return folder


def write_lines(folder: Path, lines: Sequence[Line]) -> None:
    """predictions.jsonl."""
    (folder / "predictions.jsonl").write_text("".join(line.to_text() for line in lines), encoding="utf-8")


def with_text(line: Line, text: str) -> Line:
    """The same question with another answer."""
    given = replace(line.answered.given, text=text)
    return replace(line, answered=replace(line.answered, given=given))
