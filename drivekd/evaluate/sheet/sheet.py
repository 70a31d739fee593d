"""`write_sheet`: sheet.md and sheet.html of an evaluation folder: its report, its answers and a judge's scores, if any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drivekd.data.json_file import write_text
from drivekd.evaluate.sheet import sections
from drivekd.evaluate.sheet.calibration_section import calibration_section
from drivekd.evaluate.sheet.cases import case_of, worst_and_best
from drivekd.evaluate.sheet.document import Block, Document, Note, Section, section
from drivekd.evaluate.sheet.judge_section import judge_section
from drivekd.evaluate.sheet.markdown import markdown_from_document
from drivekd.evaluate.sheet.metrics_section import metrics_section
from drivekd.evaluate.sheet.page import page_from_document
from drivekd.evaluate.sheet.reports import Reports, read_reports
from drivekd.evaluate.sheet.run_section import overlap_section, run_section
from drivekd.evaluate.sheet.scored import ScoredAnswer, read_scored
from drivekd.evaluate.sheet.thumbnails import Thumbnails
from drivekd.evaluate.sheet.upstream_section import compat_section, nuscenes_section

MARKDOWN, PAGE = "sheet.md", "sheet.html"


def write_sheet(folder: Path) -> Path:
    """Write sheet.md and sheet.html into an evaluation folder, each whole; returns the page's path.

    Raises UsageError when the folder holds no finished evaluation, DataError when one of its files is none of ours.
    """
    return write_document(sheet_of(folder), folder)


def renew_sheet(folder: Path) -> Path | None:
    """The sheet of a folder that has one, with what was measured since, a judge's marks or a calibration; None where none is.

    Raises as write_sheet.
    """
    return write_sheet(folder) if (folder / PAGE).is_file() else None


def write_document(document: Document, folder: Path) -> Path:
    """The same document as Markdown and as a page. Raises DataError."""
    write_text(folder / MARKDOWN, markdown_from_document(document))
    write_text(folder / PAGE, page_from_document(document))
    return folder / PAGE


def sheet_of(folder: Path) -> Document:
    """The sheet before it is drawn. Raises as write_sheet."""
    reports = read_reports(folder)
    answers = read_scored(folder, structured=reports.structured, setting=reports.main_setting).answers
    parts = [
        run_section(reports),
        sections.accuracy_section(reports, len({one.cluster for one in answers})),
        sections.settings_section(reports),
        sections.confusion_section(answers),
        overlap_section(reports),
        metrics_section(reports) or sections.tags_section(reports),
        nuscenes_section(reports),
        compat_section(reports),
        calibration_section(folder, str(reports.main.get("digest"))),
        judge_section(folder),
        *case_sections(answers),
    ]
    there = tuple(part for part in parts if part is not None)
    return Document(f"Score sheet: {reports.name}", _summary(reports), there)


def _summary(reports: Reports) -> str:
    everything = next((row for row in reports.main["scores"] if row["scope"] == "all"), None)
    if everything is None:
        return "No choice or yes/no question was asked."
    low, high = everything["interval"]
    return (
        f"{everything['n']} {reports.questions}: accuracy {everything['accuracy']:.3f} "
        f"(95 % interval {low:.3f}-{high:.3f}); the most common answer gets {everything['majority']:.3f}, "
        f"a random guess {everything['random']:.3f}."
    )


def case_sections(answers: Sequence[ScoredAnswer]) -> list[Section | None]:
    """The worst and the best single answers, with pictures."""
    worst, best = worst_and_best(answers)
    pictures = Thumbnails()
    setting = answers[0].setting if answers else ""
    note = f"The pictures are those of the records; the answers were given under {setting!r}." if setting != "clean" else ""
    ring = "On pictures: a blue square is of the question, a green ring of the true answer, an orange cross of the model."

    def blocks(chosen: Sequence[ScoredAnswer], what: str) -> list[Block]:
        if not chosen:
            return []
        words = " ".join(text for text in (what, ring, note) if text)
        return [Note(words), *(case_of([("answer", one)], pictures) for one in chosen)]

    return [
        section("Worst answers", blocks(worst, "Wrong ones, the surest first where that is known, in turns by topic.")),
        section("Best answers", blocks(best, "The best ones, in the same order.")),
    ]
