"""Metrics of a report that are no accuracy of choices: words, tags, actions, form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drivekd.evaluate.sheet.document import Block, Note, Section, Table, interval_text, section, share
from drivekd.evaluate.sheet.reports import Reports
from drivekd.sample import CAPABILITIES


def metrics_section(reports: Reports) -> Section | None:
    """Every other metric by capability: language, tags, actions, schema, lengths."""
    rows = [row for row in reports.main.get("metrics") or () if row["metric"] not in ("accuracy", "balanced_accuracy")]
    columns = [name for name in ("", *CAPABILITIES) if any(row["capability"] == name for row in rows)]
    blocks: list[Block] = []
    for caption, names in _FAMILIES:
        table = _metric_table(caption, names, rows, columns)
        blocks += [table] if table is not None else []
    told = (reports.main.get("implementations") or {}).items()
    return section("Open answers", [*blocks, *(Note(f"{what.capitalize()}: {how}.") for what, how in told)] if blocks else [])


_FAMILIES = (
    ("Words of open answers beside the true ones', COCO variant", ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")),
    (
        "Object tags: same camera, closer than 16 px (L1) at 1600x900, one to one",
        ("tag_precision", "tag_recall", "tag_f1", "first_object"),
    ),
    ("Planned actions and stated probability", ("action_f1", "action_exact", "probability")),
    ("Form and mean length", ("schema_valid", "words", "tokens")),
)


METRICS = ("accuracy", "balanced_accuracy", *(name for _, names in _FAMILIES for name in names))  # in the order of the sheet


def _metric_table(caption: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table | None:
    found = {(row["metric"], row["capability"]): row for row in rows}
    there = [name for name in names if any((name, column) in found for column in columns)]
    used = [column for column in columns if any((name, column) in found for name in there)]
    if not there:
        return None
    header = ("metric", *(word for column in used for word in (_named(column, found, there), "95 % interval")))
    body = tuple((name, *(word for column in used for word in _metric_cells(found.get((name, column))))) for name in there)
    return Table(caption, header, body)


def _named(column: str, found: Mapping[tuple[str, str], Mapping[str, Any]], names: Sequence[str]) -> str:
    """The capability with its number of answers; metrics of one family may have different ones."""
    counts = sorted({found[name, column]["n"] for name in names if (name, column) in found})
    return f"{column or 'all'}, n {'-'.join(map(str, counts[:1] + counts[1:][-1:]))}"


def _metric_cells(row: Mapping[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    low, high = row["interval"]
    return share(row["value"]), "-" if low is None or high is None else interval_text((low, high))
