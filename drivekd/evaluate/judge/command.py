"""What `drivekd judge` shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from drivekd.evaluate.judge.judging import JudgeReport, dry_run, judge_folder
from drivekd.evaluate.judge.settings import JudgeSettings
from drivekd.evaluate.judge.summary import COLUMNS
from drivekd.log import ProgressLine

ShowTable: TypeAlias = Callable[[str, list[str], list[list[str]]], None]


def dry_run_command(folder: Path, settings: JudgeSettings, *, show: ShowTable, say: Callable[[str], None]) -> None:
    """The plan as a table, then the first prompts. show, say: print a table, a text. Raises as `dry_run`."""
    plan = dry_run(folder, settings)
    show(f"dry run of judging {folder}", ["", ""], _lists(plan.rows))
    for number, prompt in enumerate(plan.prompts, 1):
        say(f"--- prompt {number} ---\n{prompt}\n")


def judge_command(
    folder: Path, settings: JudgeSettings, *, show: ShowTable, say: Callable[[str], None], draw: Callable[[Path], Path | None]
) -> None:
    """Judge, then the scores as a table, what has none as notes. draw: the folder's sheet anew; its page, None without one.

    Raises as `judge_folder`, and JudgeError for questions left.
    """
    line = ProgressLine()

    def on_progress(done: int, total: int, spent: float) -> None:
        cost = "" if settings.cost(0, 0) is None else f"  cost {spent:.2f}"
        line.show(f"{done}/{total} calls{cost}", final=done == total)

    try:
        report = judge_folder(folder, settings, on_progress=on_progress)
    finally:
        line.close()
    rows = [row.cells() for row in report.rows]
    show(f"judge scores of {folder}: {settings.model} at {settings.host}", list(COLUMNS), _lists(rows))
    if (page := draw(folder)) is not None:
        say(f"score sheet: {page}")
    for note in notes(report):
        say(f"note: {note}")
    report.check()


def notes(report: JudgeReport) -> list[str]:
    """What a reader of the scores must know beside them."""
    facts = report.facts
    found = [f"{count} replies have no score, and are in no mean: {reason}" for reason, count in facts["without_score"].items()]
    found += [f"{count} questions are not judged: {reason}" for reason, count in facts["left_out"].items()]
    if facts["nearest_rubric"]:
        found.append(
            f"{facts['nearest_rubric']} questions are of a kind that DriveBench has no rubric for; the nearest was taken"
        )
    if facts["speaks_of_scores"]:
        found.append(
            f'{facts["speaks_of_scores"]} answers speak of a "total score" themselves; read their replies in judge.jsonl, since '
            "a judge may be talked into one"
        )
    if facts["cost_of_attempts_without_reply_at_most"]:
        most = facts["cost_of_attempts_without_reply_at_most"]
        found.append(f"attempts whose reply never came may have cost up to {most:.2f} more, and count against max_cost")
    return found


def _lists(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(row) for row in rows]
