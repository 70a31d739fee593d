"""What a judge's scores come to: judge.json (who judged, its cost, means by group) and judge_scores.jsonl (a line a question).

A reply without a score is counted, never 0, and in no mean. Nothing here is an accuracy, and no accuracy is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from drivekd.data.json_file import read_json, write_json, write_text
from drivekd.errors import DataError
from drivekd.evaluate.judge.questions import Question, answers_digest
from drivekd.evaluate.judge.replies import NoScore, total_score
from drivekd.evaluate.judge.store import Line
from drivekd.evaluate.metrics import estimate
from drivekd.evaluate.metrics.measures import mean_of
from drivekd.sample import CAPABILITIES

REPORT, SCORES = "judge.json", "judge_scores.jsonl"
COLUMNS = ("group", "setting", "n", "judge score", "95 % interval", "without score", "not judged")
Scope: TypeAlias = Literal["all", "capability", "topic"]


@dataclass(frozen=True)
class JudgedQuestion:
    """score: 0 to 100; None with the reason in `failure`, or with "" where no reply came. nearest_rubric: DriveBench has none for
    just this kind of question."""

    question: Question
    key: str
    rubric: str
    nearest_rubric: bool
    score: float | None
    failure: str

    @property
    def is_answered(self) -> bool:
        """Whether a reply came, with or without a score."""
        return self.score is not None or bool(self.failure)

    def to_json(self) -> dict[str, Any]:
        """A line of judge_scores.jsonl."""
        one = self.question
        return {
            "source": one.source,
            "id": one.id,
            "setting": one.setting,
            "capability": one.capability,
            "topic": one.topic,
            "form": one.form,
            "scene": one.scene,
            "rubric": self.rubric,
            "nearest_rubric": self.nearest_rubric,
            "key": self.key,
            "judge_score": self.score,
            "failure": self.failure,
            "speaks_of_scores": one.speaks_of_scores,
        }


@dataclass(frozen=True)
class JudgeRow:
    """The n questions of one group under one picture setting; its table shows how many of them have a score. mean,
    interval (95 %, by scene): None where nothing has a score."""

    scope: Scope
    capability: str
    topic: str
    setting: str
    n: int
    scored: int
    mean: float | None
    interval: tuple[float, float] | None
    without_score: int
    not_judged: int

    def cells(self) -> tuple[str, ...]:
        """Under COLUMNS."""
        group = {"all": "all", "capability": self.capability, "topic": f"  {self.topic or '(no topic)'}"}[self.scope]
        mean = "-" if self.mean is None else f"{self.mean:.1f}"
        interval = "-" if self.interval is None else f"{self.interval[0]:.1f}-{self.interval[1]:.1f}"
        return (group, self.setting, str(self.scored), mean, interval, str(self.without_score), str(self.not_judged))


def judged(question: Question, key: str, rubric: str, own_rubric: bool, line: Line | None) -> JudgedQuestion:
    """A question beside the reply to its prompt; line: None where there is none."""
    score, failure = None, ""
    if line is not None and line.reply is not None:
        try:
            score = total_score(line.reply, finished=line.finish_reason != "length")
        except NoScore as error:
            failure = str(error)
    return JudgedQuestion(question, key, rubric, not own_rubric, score, failure)


def judge_rows(results: Sequence[JudgedQuestion], *, seed: int = 0) -> list[JudgeRow]:
    """All, each capability and each of its topics, for every picture setting; "clean" comes first."""
    rows = []
    for setting in sorted({one.question.setting for one in results}, key=lambda name: (name != "clean", name)):
        group = [one for one in results if one.question.setting == setting]
        rows.append(_row("all", "", "", setting, group, seed))
        for capability in CAPABILITIES:
            of_capability = [one for one in group if one.question.capability == capability]
            if not of_capability:
                continue
            rows.append(_row("capability", capability, "", setting, of_capability, seed))
            for topic in sorted({one.question.topic for one in of_capability}):
                of_topic = [one for one in of_capability if one.question.topic == topic]
                rows.append(_row("topic", capability, topic, setting, of_topic, seed))
    return rows


def _row(scope: Scope, capability: str, topic: str, setting: str, group: Sequence[JudgedQuestion], seed: int) -> JudgeRow:
    scores = [one.score for one in group if one.score is not None]
    clusters = [one.question.cluster for one in group if one.score is not None]
    return JudgeRow(
        scope=scope,
        capability=capability,
        topic=topic,
        setting=setting,
        n=len(group),
        scored=len(scores),
        mean=float(np.mean(scores)) if scores else None,
        interval=mean_interval(scores, clusters, seed=seed) if scores else None,
        without_score=sum(bool(one.failure) for one in group),
        not_judged=sum(not one.is_answered for one in group),
    )


def mean_interval(scores: Sequence[float], clusters: Sequence[str], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of scores from 0 to 100, drawing whole clusters (scenes)."""
    return estimate(mean_of(scores, maximum=100.0), clusters, seed=seed).interval


def failures_by_kind(results: Sequence[JudgedQuestion]) -> dict[str, int]:
    """Why replies have no score, and how many questions each concerns."""
    return dict(Counter(one.failure for one in results if one.failure).most_common())


def write_summary(folder: Path, results: Sequence[JudgedQuestion], rows: Sequence[JudgeRow], facts: dict[str, Any]) -> None:
    """judge.json and judge_scores.jsonl, each whole. facts: who judged, counts, cost. Raises DataError."""
    import json

    lines = (json.dumps(one.to_json()) + "\n" for one in results)
    write_text(folder / SCORES, "".join(lines))
    report = {**facts, "answers": answers_digest(folder), "rows": [asdict(row) for row in rows]}
    write_json(folder / REPORT, report)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """judge.json of an evaluation folder, None where nobody judged. Raises DataError when it is of other answers."""
    path = folder / REPORT
    if not path.is_file():
        return None
    report = read_json(path)
    if not isinstance(report, dict) or "answers" not in report:
        raise DataError(f"{path}: not a report of `drivekd judge`; delete it, or judge again")
    if report["answers"] != answers_digest(folder):
        raise DataError(f"{path}: judges other answers than those that the folder holds now; run `drivekd judge` again")
    return report
