"""The head of a sheet: who was asked what, what was not asked and why, what was cut, and what of it the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivekd.evaluate.sheet.document import Facts, Note, Section, Table, interval_text, section, share
from drivekd.evaluate.sheet.reports import Reports
from drivekd.evaluate.sheet.sections import label_of


def run_section(reports: Reports) -> Section | None:
    """What was asked of whom, with which versions."""
    told, decided, main = reports.run.get("told", {}), reports.run.get("is", {}), reports.main
    facts = {
        "model": main.get("answerer"),
        "digest": main.get("digest"),
        "data": told.get("data"),
        "data digest": decided.get("data"),
        "pictures": ", ".join(reports.by_setting),
        "begun": told.get("began"),
        "token budget": _budget(decided.get("max_new_tokens")),
        "precision": decided.get("precision") or decided.get("backend"),
        "seed, resamples": f"{main.get('seed')}, {main.get('resamples')}",
        "versions": ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items()),
    }
    rows = tuple((name, str(value)) for name, value in facts.items() if value not in (None, ""))
    return section("What was evaluated", [Facts(rows), *_left_out(reports), *_cut(reports), *_missing(reports)])


def _budget(budget: object) -> object:
    """As evaluation.json has it: tokens by capability, "rest" for those that are not named."""
    if not isinstance(budget, dict):
        return budget
    named = [f"{name} {tokens}" for name, tokens in budget.items() if name != "rest"]
    rest = budget.get("rest")
    return ", ".join([*named, *([] if rest is None else [f"others {rest}" if named else str(rest)])])


def _left_out(reports: Reports) -> list[Note]:
    return [Note(f"{count} records were not asked: {reason}.") for reason, count in _counts(reports.main, "not_asked").items()]


def _cut(reports: Reports) -> list[Note]:
    """Answers that the budget cut, of every setting that has some."""
    found = []
    for name, report in reports.by_setting.items():
        if counts := _counts(report, "truncated"):
            by = ", ".join(f"{capability} {count}" for capability, count in counts.items())
            found.append(Note(f"Answers that the token budget cut ({name}): {by}.", warning=True))
    return found


def _missing(reports: Reports) -> list[Note]:
    return [Note(f"Not computed: {what} ({why}).") for what, why in (reports.main.get("missing") or {}).items()]


def _counts(report: Mapping[str, Any], key: str) -> Mapping[str, int]:
    return {name: count for name, count in (report.get(key) or {}).items() if count}


def overlap_section(reports: Reports) -> Section | None:
    """The scores without what the model was trained on."""
    overlap = reports.main.get("overlap")
    if overlap is None:
        return None
    if not overlap["marked"]:
        return section(
            "Training data",
            [Note(f"None of {overlap['n']} answers is about scenes, frames or pictures of {overlap['against']}.")],
        )
    note = Note(
        f"{overlap['marked']} of {overlap['n']} answers are about scenes, frames or pictures of {overlap['against']}: no test of "
        "what the model has not seen. The table has the scores without them.",
        warning=True,
    )
    whole = {(row["scope"], row["capability"], row["topic"]): row for row in reports.main["scores"]}
    rows = []
    for row in overlap["scores"]:
        before = whole.get((row["scope"], row["capability"], row["topic"]))
        label = ("  " if row["scope"] == "topic" else "") + label_of(row)
        with_all = "-" if before is None else share(before["accuracy"])
        rows.append((label, str(row["n"]), share(row["accuracy"]), interval_text(tuple(row["interval"])), with_all))
    header = ("group", "n", "accuracy", "95 % interval", "with them")
    return section("Training data", [note, Table("Accuracy without what was trained on", header, tuple(rows))])
