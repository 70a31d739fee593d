"""Free text against structured answers of one bundle: the same frames of the driving world, the same questions, one table.

A structured answer states several questions' options (drivekd/world/stated.py): what perception lists says what the signal shows,
where the vehicle ahead is and how the road runs. Each is scored beside the free answer to the record's own question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivekd.answered import Answered, Given
from drivekd.data.readers import read_samples
from drivekd.errors import DataError
from drivekd.evaluate import EvaluationReport
from drivekd.evaluate.answering import open_answerer
from drivekd.evaluate.metrics import NUM_RESAMPLES, Interval
from drivekd.evaluate.scoring import score
from drivekd.images import RGBImage, load_image
from drivekd.runtime import Answer, Session, load_bundle
from drivekd.sample import CAPABILITIES, Sample
from drivekd.world.stated import STATED_TOPICS, stated_options

TITLE = "free text and structured answers to the same questions [95 % interval by scene]"
HEADER = ["", *CAPABILITIES]
SPEED = "ego_speed_mps"
TOPICS = {topic: capability for capability, topics in STATED_TOPICS.items() for topic in topics}

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class BothForms:
    """reports: scores of the same questions, "free text" and "structured". answers: the structured ones, by scene and capability.
    differences: structured minus free accuracy by capability, with its paired 95 % interval."""

    reports: dict[str, EvaluationReport]
    answers: dict[str, dict[str, Answer]]
    differences: dict[str, tuple[float, Interval]]

    def rows(self) -> list[list[str]]:
        """A table: how many questions, accuracy of both forms, their difference, how many structured answers are not valid."""
        free = self.reports["free text"]
        accuracies = [[name, *(_scored(report, one) for one in CAPABILITIES)] for name, report in self.reports.items()]
        gains = [f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" for value, (low, high) in self.differences.values()]
        invalid = [sum(not found[one].valid for found in self.answers.values()) for one in CAPABILITIES]
        return [
            ["majority answer", *(f"{free.row(one).majority:.3f}" for one in CAPABILITIES)],
            *accuracies,
            ["difference, paired", *gains],
            ["questions", *(str(free.row(one).n) for one in CAPABILITIES)],
            ["structured answers not valid", *(f"{count} of {len(self.answers)}" for count in invalid)],
        ]


def _scored(report: EvaluationReport, capability: str) -> str:
    row = report.row(capability)
    return f"{row.accuracy:.3f} [{row.interval[0]:.3f}, {row.interval[1]:.3f}]"


def both_forms(
    bundle: Path, records: Path, *, reference: Sequence[Sample] = (), on_progress: OnProgress | None = None
) -> BothForms:
    """Ask a bundle about every frame of a world's file of records, in both forms. reference: for the majority answer.

    Raises DataError: the file holds none of the world's questions.
    """
    samples = [sample for sample in read_samples(records) if sample.topic in TOPICS]
    if not samples:
        raise DataError(f"{records}: no question of the built-in world; expected meta.topic {', '.join(TOPICS)}")
    answerer = open_answerer(bundle)
    free = [Answered(one, given) for one, given in zip(samples, answerer.answers(samples), strict=True)]
    with load_bundle(bundle, expect_digest=answerer.digest) as session:
        answers = _structured_answers(session, samples, _speeds(records), on_progress)
    stated = {scene: _letters(found) for scene, found in answers.items()}
    structured = [Answered(one, Given(f"{stated[one.scene][one.topic] or '?'}.")) for one in samples]
    reports = {
        name: score(found, answerer=answerer.name, digest=answerer.digest, reference=reference)
        for name, found in (("free text", free), ("structured", structured))
    }
    return BothForms(reports, answers, _differences(reports["free text"], reports["structured"], samples))


def _structured_answers(
    session: Session, samples: Sequence[Sample], speeds: dict[str, int], on_progress: OnProgress | None
) -> dict[str, dict[str, Answer]]:
    """By scene: the bundle's own questions about all pictures that it has of the frame, at the frame's speed."""
    frames = {sample.scene: sample for sample in sorted(samples, key=lambda one: len(one.images))}
    found = {}
    for number, (scene, sample) in enumerate(frames.items(), 1):
        images: dict[str, RGBImage] = {name: load_image(path) for name, path in zip(sample.cameras, sample.images, strict=True)}
        variables = {SPEED: speeds[scene]} if SPEED in session.variables else None
        found[scene] = session.answer(images, variables=variables, structured=True)
        if on_progress is not None:
            on_progress(number, len(frames))
    return found


def _letters(answers: dict[str, Answer]) -> dict[str, str | None]:
    letters: dict[str, str | None] = {}
    for capability in CAPABILITIES:
        answer = answers[capability]
        if answer.valid and answer.structured is not None:
            letters |= stated_options(capability, answer.structured)
        else:
            letters |= dict.fromkeys(STATED_TOPICS[capability])
    return letters


def _speeds(records: Path) -> dict[str, int]:
    """Of each scene, m/s; a Sample does not hold it, since a question names it where it matters."""
    metas = [record["meta"] for record in json.loads(records.read_text(encoding="utf-8"))]
    return {meta["scene"]: meta["ego_speed_mps"] for meta in metas}


def _differences(
    free: EvaluationReport, structured: EvaluationReport, samples: Sequence[Sample]
) -> dict[str, tuple[float, Interval]]:
    """Structured minus free, resampling scenes: both forms of a scene are drawn together."""
    gains = np.asarray(
        [bool(s.correct) - bool(f.correct) for f, s in zip(free.predictions, structured.predictions, strict=True)], np.float64
    )
    return {
        capability: _difference(
            gains[[sample.capability == capability for sample in samples]],
            [sample.scene for sample in samples if sample.capability == capability],
        )
        for capability in CAPABILITIES
    }


def _difference(gains: NDArray[np.float64], scenes: Sequence[str]) -> tuple[float, Interval]:
    names, index = np.unique(np.asarray(scenes), return_inverse=True)
    sums = np.bincount(index, weights=gains)  # [C]
    sizes = np.bincount(index)  # [C]
    drawn = np.random.default_rng(0).integers(0, len(names), (NUM_RESAMPLES, len(names)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return float(gains.mean()), (float(low), float(high))
