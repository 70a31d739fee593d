"""The answered questions of an evaluation folder, as far as a judge needs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.errors import DataError, UsageError
from drivekd.sample import ANSWER_FORMS, CAPABILITIES, AnswerForm, Capability

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Question:
    """One line of predictions.jsonl. reference: the true answer, "" where there is none. setting: what was done to the pictures.
    cluster: what is drawn together for intervals, the scene where there is one."""

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

    @property
    def cluster(self) -> str:
        """What is drawn together for intervals: a scene, or the question alone where nobody named one."""
        return self.scene or self.source

    @property
    def speaks_of_scores(self) -> bool:
        """Whether the prediction talks about its own score, as no answer to a driving question does."""
        return "total score" in " ".join(self.prediction.lower().split())


def read_questions(folder: Path) -> list[Question]:
    """The predictions of an evaluation folder, in order. Raises UsageError without the file, DataError naming line and field."""
    path = folder / PREDICTIONS
    if not path.is_file():
        raise UsageError(f"{folder}: there is no {PREDICTIONS}; give the --out folder of a `drivekd eval`")
    questions = [_question(record, f"{path}, line {number}") for number, record in _records(path)]
    if not questions:
        raise DataError(f"{path}: holds no prediction")
    return questions


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line.decode("utf-8"))
            except ValueError as error:  # also UnicodeDecodeError
                raise DataError(
                    f"{path}, line {number}: not JSON in UTF-8 ({error}); is an evaluation still writing, or was it cut off?"
                ) from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: expected an object, found {str(record)[:80]}")
            yield number, record


def _question(record: dict[str, Any], source: str) -> Question:
    form = _text(record, "form" if "form" in record else "kind", source)  # `kind`: as earlier versions wrote it
    capability = _text(record, "capability", source)
    return Question(
        source=_text(record, "source", source, default=source),
        id=_text(record, "id", source, default=""),
        capability=_one_of(capability, CAPABILITIES, "capability", source),
        topic=_text(record, "topic", source, default=""),
        form=_one_of(form, ANSWER_FORMS, "form", source),
        question=_text(record, "question", source),
        reference=_text(record, "answer", source, default=""),
        prediction=_text(record, "prediction", source),
        scene=_text(record, "scene", source, default=""),
        frame=_text(record, "frame", source, default=""),
        setting=_text(record, "setting", source, default="clean"),
    )


def _text(record: dict[str, Any], field: str, source: str, default: str | None = None) -> str:
    value = record.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise DataError(f"{source}: {field}: expected text, found {'nothing' if value is None else repr(value)[:80]}")
    return value


def _one_of(value: str, known: tuple[Any, ...], field: str, source: str) -> Any:
    if value not in known:
        raise DataError(f"{source}: {field}: expected one of {', '.join(known)}, found {value[:80]!r}")
    return value
