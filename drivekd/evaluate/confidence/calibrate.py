"""What `drivekd calibrate` does: asks labelled questions, fits a confidence for each capability, says what it is worth."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivekd.answered import Answered
from drivekd.errors import DataError, UsageError
from drivekd.evaluate.evaluation import EvalRequest, run_questions
from drivekd.evaluate.scoring import item_from_sample, parse_answer, why_not_scored
from drivekd.evaluate.structured_scores import is_right, why_not_structured
from drivekd.runtime.answers.confidence import Calibration, entry_name
from drivekd.sample import CAPABILITIES, Sample

from .halves import halves
from .judged import Judged, judged_answers
from .report import HEADER, Row, calibrated_row, pooled_cells
from .settings import CalibrationSettings, calibration_settings


@dataclass(frozen=True)
class CalibrationRequest:
    """model: a checkpoint or a bundle. records: labelled, none of them trained on. answers: where the answers are kept, as an
    eval's --out; None = nowhere. structured: calibrate answers as JSON. overrides: "key=value" of CalibrationSettings."""

    model: Path
    records: Path
    image_root: Path | None = None
    answers: Path | None = None
    structured: bool = False
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class CalibrationReport:
    """entries: for calibration.json. rows: what was found, by capability; table: the same as text, under HEADER. notes: what a
    reader must know. model: digest of what answered."""

    entries: dict[str, Calibration]
    rows: list[Row]
    table: list[list[str]]
    model: str
    notes: list[str] = field(default_factory=list)
    header: tuple[str, ...] = HEADER

    def to_json(self) -> dict[str, Any]:
        """For a file that people's tools read: bins and curves are in it."""
        return {"model": self.model, "rows": [row.to_json() for row in self.rows], "notes": self.notes}


def calibrate(request: CalibrationRequest) -> CalibrationReport:
    """Ask every choice and yes/no question, and calibrate each capability that has enough answers.

    Raises UsageError, CheckpointError, BundleError, RunnerError; DataError when no capability has enough answers in two halves
    without a common scene, naming how many there are.
    """
    settings = calibration_settings(request.overrides)
    if settings.part().count > 1:
        raise UsageError("calibrate asks in one process; ask in shards with drivekd eval, and give its --out as --answers")
    with ExitStack() as stack:
        folder = request.answers or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asked = EvalRequest(
            request.model, request.records, folder, request.image_root, structured=request.structured, overrides=request.overrides
        )
        run = run_questions(asked, settings, why_not_structured if request.structured else _why_not_closed)
    return _report(run.answered("clean"), settings, request.structured, data=run.data_digest, model=run.answerer.digest)


def _why_not_closed(sample: Sample) -> str | None:
    if sample.answer_form == "open":
        return "open questions: an answer to a choice or yes/no question is right or wrong, to these it is neither"
    return why_not_scored(sample)


def _is_right(one: Answered) -> bool:
    return parse_answer(one.given.text, one.sample) == item_from_sample(one.sample).answer


def _report(
    answered: Sequence[Answered], settings: CalibrationSettings, structured: bool, *, data: str, model: str
) -> CalibrationReport:
    goal, notes = settings.goal, list[str]()
    counted = {
        name: judged_answers((one for one in answered if one.sample.capability == name), is_right if structured else _is_right)
        for name in CAPABILITIES
    }
    fitted, _ = halves([one for count in counted.values() for one in count.judged], settings.seed)
    scenes = {one.scene for one in fitted}
    rows: dict[str, Row] = {}
    unseen: list[list[Judged]] = []
    for name, count in counted.items():
        notes += [f"{name}: {number} answers left out: {why}" for why, number in count.left_out.items()]
        if not count.judged:
            continue
        mine = [one for one in count.judged if one.scene in scenes]
        others = [one for one in count.judged if one.scene not in scenes]
        try:
            rows[name] = calibrated_row(name, mine, others, goal)
        except DataError as error:
            notes.append(f"not calibrated: {error}")
            continue
        notes += rows[name].notes()
        unseen.append(others)
    if not rows:
        raise DataError("nothing was calibrated: " + "; ".join(notes))
    entries = {
        entry_name(name, structured=structured): row.calibration(data=data, model=model, goal=goal) for name, row in rows.items()
    }
    table = [row.cells() for row in rows.values()]
    if len(rows) > 1:
        table.append(pooled_cells(list(rows.values()), unseen, goal))
    return CalibrationReport(entries, list(rows.values()), table, model, notes)
