"""What stands beside our scores in an evaluation folder: what the pictures are worth, upstream's own rules, NuScenes-QA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drivekd.evaluate.sheet.document import Block, Note, Section, Table, interval_text, section, share, signed_share
from drivekd.evaluate.sheet.metrics_section import METRICS
from drivekd.evaluate.sheet.reports import Reports
from drivekd.sample import CAPABILITIES


def grounding_table(settings: Mapping[str, Any]) -> Table | None:
    """Each metric with pictures minus without, paired by question; None where one of the two was not asked."""
    grounding = settings.get("grounding")
    found = [] if grounding is None else sorted(grounding["rows"], key=_place)
    rows = tuple(map(_grounding_cells, found))
    header = ("metric", "capability", "n", "NoImage", "clean", "difference", "95 % interval")
    caption = "What the pictures are worth: every metric, clean minus NoImage, paired by question, intervals by scene"
    return Table(caption, header, rows, labels=2) if rows else None


def _place(row: Mapping[str, Any]) -> tuple[int, int, str]:
    """All answers, then each capability; metrics as everywhere on the sheet, and by name where it does not know them."""
    order = (*METRICS, row["metric"])
    return ("", *CAPABILITIES).index(row["capability"]), order.index(row["metric"]), row["metric"]


def _grounding_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = row["interval"]
    interval = "-" if low is None or high is None else interval_text((low, high), signed=True)
    values = (share(row["first"]), share(row["second"]), signed_share(row["difference"]))
    return (row["metric"], row["capability"] or "all", str(row["n"]), *values, interval)


def groups_blocks(settings: Mapping[str, Any]) -> list[Block]:
    """Accuracy in Drive-KD's columns by DriveBench's groups, and the paper's table, marked as what it is."""
    header = ("pictures", *settings["columns"])
    rows = tuple((row["pictures"], *map(share, row["values"])) for row in settings["rows"])
    paper = tuple((str(name), *(f"{value:.2f}" for value in values)) for name, *values in settings["paper"]["rows"])
    caption = f"{str(settings['metric']).capitalize()}, by DriveBench's groups (a group: the mean of its settings)"
    return [Table(caption, header, rows), Table(_sentence(settings["paper"]["what"]), header, paper, separate=1)]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def nuscenes_section(reports: Reports) -> Section | None:
    """Exact matches by type and hop."""
    rows = tuple(
        (
            row["type"] or "all",
            "all" if row["hop"] is None else str(row["hop"]),
            str(row["n"]),
            share(row["accuracy"]),
            interval_text(tuple(row["interval"])),
        )
        for row in reports.main.get("nuscenes_qa") or ()
    )
    header = ("type", "hop", "n", "exact match", "95 % interval")
    return section("NuScenes-QA", [Table("Share of exact matches", header, rows, labels=2)] if rows else [])


def compat_section(reports: Reports) -> Section | None:
    """`drivekd score --compat`: upstream's rules, defects included, in columns of their own."""
    found = (reports.metrics.get("compat") or {}).get(reports.main_setting) or {}
    blocks: list[Block] = []
    if "drivebench" in found:
        blocks.append(_drivebench(found["drivebench"]))
    if "drivelm" in found:
        blocks += _drivelm(found["drivelm"])
    return section("Upstream's own rules", blocks)


def _drivebench(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = tuple(
        (row["capability"] or "all", str(row["n"]), share(row["ours"]), share(row["upstream"]), str(row["differ"]))
        for row in rows
    )
    header = ("choices", "n", "ours", "upstream's rule", "read differently")
    return Table('DriveBench\'s toolkit takes the article "a" for choice A', header, cells, separate=3)


def _drivelm(found: Mapping[str, Any]) -> list[Block]:
    upstream, ours = found["upstream"], found["ours"]
    counts: Mapping[str, int] = upstream["n"]
    of: Mapping[str, int] = ours["n"]
    rows = (
        ("accuracy (tag 0)", str(of["accuracy"]), share(ours["accuracy"]), str(counts["accuracy"]), share(upstream["accuracy"])),
        ("language (tag 2)", "-", "-", str(counts["language"]), share(upstream["language"])),
        ("match, F1 half (tag 3)", str(of["tag_f1"]), share(ours["tag_f1"]), str(counts["match"]), share(upstream["f1"])),
    )
    header = ("part", "n, all", "ours", "n, gated", "upstream's rule")
    table = Table("DriveLM's challenge/evaluation.py", header, rows, separate=3)
    gated = (
        f"{upstream['gated']} questions do not count upstream: a coordinate in them was not found in the frame's first answer."
    )
    return [table, Note(gated), Note(f"Match and the final score: {upstream['why_null']}.")]
