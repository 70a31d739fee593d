"""What `drivekd eval` does: read, ask, score, write the report."""

from __future__ import annotations

from pathlib import Path

from drivekd.data.readers import read_samples
from drivekd.evaluate.answerers import open_answerer
from drivekd.evaluate.evaluation import evaluate
from drivekd.evaluate.scores import COLUMNS, write_report
from drivekd.files import refuse_non_empty
from drivekd.log import ProgressLine


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
        open_answerer(model),
        samples,
        reference=read_samples(reference) if reference else None,
        images="black" if black else "clean",
        on_progress=lambda done, total: line.show(f"{done}/{total} answers", final=done == total),
    )
    write_report(report, out)
    return list(COLUMNS), [list(row) for row in report.rows()]
