"""What `drivekd eval` does: opens what can answer, asks it every question that can be scored without a judge, scores, reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from drivekd.answered import Answered
from drivekd.data.readers import read_samples
from drivekd.evaluate.answering import CLEAN, Answerer, AnswererSettings, Pictures, open_answerer
from drivekd.evaluate.scores import COLUMNS, EvaluationReport, write_report
from drivekd.evaluate.scoring import scorable, score
from drivekd.files import refuse_non_empty
from drivekd.log import ProgressLine
from drivekd.sample import Sample


def evaluate(
    answerer: Answerer,
    samples: Sequence[Sample],
    *,
    reference: Sequence[Sample] | None = None,
    seed: int = 0,
    pictures: Pictures = CLEAN,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Score an answerer on labelled samples.

    reference: where the majority answers are counted, such as the training file; without it the evaluated file's own.
    Raises DataError, before anything is asked, when a sample has no answer, when the answer of a choice or yes/no
    question states none of its classes, or when there is nothing to score.
    """
    asked = scorable(samples)
    done = [0]

    def count(*_: object) -> None:
        done[0] += 1
        if on_progress is not None:
            on_progress(done[0], len(asked))

    given = answerer.answers(asked, pictures=pictures, on_answer=count)
    assert len(given) == len(asked), f"{answerer.name} gave {len(given)} answers to {len(asked)} questions"
    return score(
        [Answered(sample, one, pictures.setting) for sample, one in zip(asked, given, strict=True)],
        answerer=answerer.name,
        digest=answerer.digest,
        reference=reference or (),
        open_not_scored=len(samples) - len(asked),
        seed=seed,
    )


def evaluate_file(
    model: Path, records: Path, out: Path, *, reference: Path | None = None, black: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Score a checkpoint or bundle on a file of records; writes report.json and predictions.jsonl into `out`.

    reference: records whose majority answer is the baseline. Returns a table (header, rows).
    """
    refuse_non_empty(out, "give a new --out")
    samples = read_samples(records)
    line = ProgressLine()
    report = evaluate(
        open_answerer(model, AnswererSettings()),
        samples,
        reference=read_samples(reference) if reference else None,
        pictures=Pictures("NoImage") if black else CLEAN,
        on_progress=lambda done, total: line.show(f"{done}/{total} answers", final=done == total),
    )
    write_report(report, out)
    return list(COLUMNS), [list(row) for row in report.rows()]
