"""A judge's scores on a sheet: columns of their own, with the judge's name, and never in one table with an accuracy."""

from __future__ import annotations

from pathlib import Path

from drivekd.errors import DataError
from drivekd.evaluate.judge.summary import read_summary
from drivekd.evaluate.sheet.document import Block, Note, Section, Table, section


def judge_section(folder: Path) -> Section | None:
    """What `drivekd judge` left in the folder; None where nobody judged. A report of other predictions is named and not shown."""
    try:
        report = read_summary(folder)
    except DataError as error:
        return Section("Judge", (Note(str(error), warning=True),))
    if report is None:
        return None
    judge = report["judge"]
    who = f"{judge['model']} at {judge['endpoint_host']}"
    rows = tuple(_cells(row) for row in report["rows"])
    caption = f"Marks from 0 to 100 by {who}, rubrics {judge['rubrics']}: no accuracy, and not comparable to another judge's"
    header = ("group", "pictures", "n", "judge score", "95 % interval", "without score", "not judged")
    blocks: list[Block] = [Table(caption, header, rows, labels=2, separate=3)]
    if report["without_score"]:
        kinds = ", ".join(f"{reason} ({count})" for reason, count in report["without_score"].items())
        blocks.append(Note(f"Replies without a score, in no mean: {kinds}."))
    if report["not_judged"]:
        blocks.append(
            Note(f"{report['not_judged']} questions are not judged yet; those that are may be other ones.", warning=True)
        )
    if report["nearest_rubric"]:
        blocks.append(
            Note(f"{report['nearest_rubric']} questions are of a kind that DriveBench has no rubric for; the nearest was taken.")
        )
    if report["speaks_of_scores"]:
        blocks.append(
            Note(
                f"{report['speaks_of_scores']} answers speak of their own score; see their replies in judge.jsonl.", warning=True
            )
        )
    return section("Judge", blocks)


def _cells(row: dict[str, object]) -> tuple[str, ...]:
    from drivekd.evaluate.judge.summary import JudgeRow

    values = {**row, "interval": tuple(row["interval"]) if row["interval"] else None}  # type: ignore[arg-type]
    return JudgeRow(**values).cells()  # type: ignore[arg-type]
