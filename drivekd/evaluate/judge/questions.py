"""The answered questions of an evaluation folder, as far as a judge needs them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from drivekd.answered import Answered
from drivekd.errors import UsageError
from drivekd.evaluate.predictions import answers_in
from drivekd.sample import AnswerForm, Capability


@dataclass(frozen=True)
class Question:
    """One line of predictions.jsonl. reference: the true answer, "" where there is none. setting: what was done to the pictures.
    pictures: their paths."""

    source: str
    id: str
    capability: Capability
    topic: str
    form: AnswerForm
    question: str
    reference: str
    prediction: str
    scene: str
    frame: str
    setting: str
    pictures: str = ""

    @property
    def cluster(self) -> str:
        """What is drawn together for intervals: a scene, or what has the same pictures where nobody named one."""
        return self.scene or self.pictures or self.frame or self.source

    @property
    def speaks_of_scores(self) -> bool:
        """Whether the prediction talks about its own score, as no answer to a driving question does."""
        return "total score" in " ".join(self.prediction.lower().split())


def read_questions(folder: Path) -> list[Question]:
    """The answers of an evaluation folder, of all its shards, in order. Raises UsageError where there are none, DataError for a
    broken line."""
    lines = answers_in(folder) if folder.is_dir() else []
    if not lines:
        raise UsageError(f"{folder}: holds no answers (predictions.jsonl); give the --out folder of a `drivekd eval`")
    return [_question(line.answered) for line in lines]


def answers_digest(folder: Path) -> str:
    """ "sha256:..." of the answers of a folder, however they lie in its files."""
    digest = hashlib.sha256()
    for line in answers_in(folder):
        digest.update(line.to_text().encode())
    return f"sha256:{digest.hexdigest()}"


def _question(answered: Answered) -> Question:
    sample = answered.sample
    return Question(
        source=sample.source,
        id=sample.id,
        capability=sample.capability,
        topic=sample.topic,
        form=sample.answer_form,
        question=sample.question,
        reference=sample.answer or "",
        prediction=answered.given.text,
        scene=sample.scene,
        frame=sample.frame,
        setting=answered.setting,
        pictures="|".join(map(str, sample.images)),
    )
