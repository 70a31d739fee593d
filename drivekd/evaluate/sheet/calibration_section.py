"""What `drivekd calibrate --answers EVAL_DIR` left in the folder: how far confidences keep their promise, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivekd.data.json_file import read_json
from drivekd.errors import DataError
from drivekd.evaluate.sheet.document import Block, Note, Reliability, ReliabilityBin, Section, Table, section, share

REPORT = "calibration_report.json"


def calibration_section(folder: Path, digest: str) -> Section | None:
    """Reliability by capability; None where nobody calibrated. digest: of the model that was evaluated.

    Raises DataError for a file that is no such report.
    """
    path = folder / REPORT
    if not path.is_file():
        return None
    report = read_json(path)
    try:
        assert isinstance(report, dict)
        blocks = _blocks(report)
        model = report["model"]
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a report of `drivekd calibrate` ({error!r}); calibrate again, or delete it") from error
    if model != digest:
        blocks.insert(0, Note(f"Calibrated was another model, {model}; this one is {digest}.", warning=True))
    return section("Confidence", blocks)


def _blocks(report: Mapping[str, Any]) -> list[Block]:
    header = (
        *("answers", "fitted on", "reported on", "accuracy", "ECE before", "ECE after"),
        *("by chance", "threshold", "given", "wrong of these"),
    )
    rows = tuple(_cells(row) for row in report["rows"])
    caption = "Expected calibration error on scenes that nothing was fitted on; by chance: what perfect confidences would show"
    blocks: list[Block] = [Table(caption, header, rows)]
    for row in report["rows"]:
        blocks.append(_diagram(f"{row['name']}, exp(mean log-probability)", row["before"]))
        blocks.append(_diagram(f"{row['name']}, calibrated", row["after"]))
    return blocks + [Note(str(note)) for note in report["notes"]]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (
        row["accuracy"],
        row["before"]["ece"],
        row["after"]["ece"],
        row["after"]["by_chance"],
        row["threshold"],
        row["coverage"],
    )
    return (row["name"], str(row["fitted_on"]), str(row["reported_on"]), *map(share, numbers), share(row["risk"]))


def _diagram(caption: str, quality: Mapping[str, Any]) -> Reliability:
    bins = tuple(ReliabilityBin(one["confidence"], one["accuracy"], one["n"]) for one in quality["bins"])
    return Reliability(f"{caption}: ECE {share(quality['ece'])}", bins)
