"""The parts of a score sheet about numbers, each from the reports of a run; what a report does not have, its sheet leaves out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from drivekd.data.answer_forms import options
from drivekd.evaluate.corruptions import GROUPS
from drivekd.evaluate.scores import majority_caveat
from drivekd.evaluate.sheet.document import (
    Block,
    Confusion,
    Heat,
    Note,
    Section,
    Table,
    Whisker,
    Whiskers,
    interval_text,
    section,
    share,
)
from drivekd.evaluate.sheet.reports import CLEAN, Reports
from drivekd.evaluate.sheet.scored import ScoredAnswer, confusion_counts
from drivekd.evaluate.sheet.upstream_section import grounding_table, groups_blocks
from drivekd.sample import CAPABILITIES

NO_IMAGE = "NoImage"
FEW_SCENES = 10
MOST_CLASSES = 10  # of a confusion table; more are no picture any more


def few_scenes(scenes: int) -> Note | None:
    """What intervals are worth when hardly anything is drawn: with few clusters the percentile bootstrap is too narrow."""
    if scenes >= FEW_SCENES:
        return None
    return Note(f"Only {scenes} scenes: intervals that draw so few scenes are too narrow to be believed.", warning=True)


def accuracy_section(reports: Reports, scenes: int) -> Section | None:
    """Choice and yes/no questions by capability and topic. scenes: how many the answers are about."""
    rows = [row for row in reports.main["scores"] if row["n"]]
    if not rows:
        return None
    on = "" if reports.main_setting == CLEAN else f", pictures: {reports.main_setting}"
    caption = f"Accuracy of {reports.questions} with 95 % intervals that draw scenes{on}"
    chart = Whiskers(caption, tuple(_whisker(row) for row in rows))
    header = ("group", "n", "accuracy", "95 % interval", "majority", "random", "balanced yes/no", "unparsed", "schema")
    cells = tuple(
        (
            ("  " if row["scope"] == "topic" else "") + label_of(row),
            str(row["n"]),
            share(row["accuracy"]),
            interval_text(tuple(row["interval"])),
            share(row["majority"]),
            share(row["random"]),
            share(row["balanced_accuracy"]),
            str(row["unparsed"]),
            share(row["schema_valid"]),
        )
        for row in rows
    )
    majority = majority_caveat(rows)
    notes = [Note(f"{majority[0].upper()}{majority[1:]}.") if majority else None, few_scenes(scenes) or _not_beyond(rows)]
    return section("By capability", [chart, Table("The same in numbers", header, cells), *notes])


def label_of(row: Mapping[str, Any]) -> str:
    """What a row of a report is about, for people."""
    return str({"all": "all", "capability": row["capability"]}.get(row["scope"], row["topic"] or "(no topic)"))


def _whisker(row: Mapping[str, Any]) -> Whisker:
    low, high = row["interval"]
    level = 1 if row["scope"] == "topic" else 0
    return Whisker(label_of(row), row["n"], row["accuracy"], (low, high), row["majority"], row["random"], level)


def _not_beyond(rows: Sequence[Mapping[str, Any]]) -> Note | None:
    """The first question of a reader: is this more than saying the most common answer?"""
    weak = [label_of(row) for row in rows if row["scope"] != "all" and row["interval"][0] <= row["majority"]]
    if not weak:
        return Note("Every group's whole interval lies above its most common answer.")
    return Note(f"Not shown to be better than the most common answer: {', '.join(weak)}.", warning=True)


def settings_section(reports: Reports) -> Section | None:
    """Every picture setting by capability, grouped as DriveBench groups them, and what the pictures are worth."""
    if len(reports.by_setting) < 2:
        return None
    columns = (
        "all",
        *(name for name in CAPABILITIES if any(_of(report, name) is not None for report in reports.by_setting.values())),
    )
    grouped = _grouped(list(reports.by_setting))
    rows = tuple((label, tuple(_of(reports.by_setting[name], column) for column in columns)) for label, name in grouped)
    blocks: list[Block] = [Heat("Accuracy under each picture setting", "pictures", columns, rows)]
    clean = reports.by_setting.get(CLEAN)
    if clean is not None:
        lost = tuple(
            (label, tuple(_difference(_of(reports.by_setting[name], column), _of(clean, column)) for column in columns))
            for label, name in grouped
            if name != CLEAN
        )
        blocks.append(Heat("Difference to clean pictures", "pictures", columns, lost, signed=True))
    if clean is not None and NO_IMAGE in reports.by_setting:
        worth = [
            f"{name} {_difference(_of(clean, name), _of(reports.by_setting[NO_IMAGE], name)):+.3f}"
            for name in columns
            if _of(clean, name) is not None and _of(reports.by_setting[NO_IMAGE], name) is not None
        ]
        blocks.append(Note(f"Clean minus NoImage, what the model gains by looking: {', '.join(worth)}."))
    if reports.settings:
        grounding = grounding_table(reports.settings)
        blocks += [*([grounding] if grounding is not None else []), *groups_blocks(reports.settings)]
    return section("By picture setting", blocks)


def _grouped(settings: Sequence[str]) -> list[tuple[str, str]]:
    """(label, setting) in the order of DriveBench's groups, the label naming the group."""
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    order = list(group_of)
    ranked = sorted(settings, key=lambda name: order.index(name) if name in group_of else -1 - (name == CLEAN))
    return [(f"{group_of[name]}: {name}" if name in group_of else name, name) for name in ranked]


def _of(report: Mapping[str, Any], capability: str) -> float | None:
    for row in report["scores"]:
        if row["scope"] == ("all" if capability == "all" else "capability") and row["capability"] in ("", capability):
            return float(row["accuracy"])
    return None


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def confusion_section(answers: Sequence[ScoredAnswer]) -> Section | None:
    """What is taken for what: yes and no, the letters of choices, and the options' words where a topic always offers the same."""
    closed = [one for one in answers if one.true is not None]
    yes_no = [one for one in closed if one.sample.answer_form == "yesno"]
    choices = [one for one in closed if one.sample.answer_form == "choice"]
    blocks = [
        _confusion("Yes/no questions", [(one.true or "", one.stated) for one in yes_no]),
        _confusion("Letters of choice questions: a column that is full says that a place is preferred", _letters(choices)),
        *(_confusion(f"Choices: {name}", pairs) for name, pairs in _by_words(choices).items()),
    ]
    return section("What is taken for what", blocks)


def _confusion(caption: str, pairs: Sequence[tuple[str, str | None]]) -> Confusion | None:
    true, stated, counts = confusion_counts(pairs)
    return Confusion(caption, true, stated, counts) if 1 < len(stated) <= MOST_CLASSES + 1 else None


def _letters(choices: Sequence[ScoredAnswer]) -> list[tuple[str, str | None]]:
    return [(one.true or "", one.stated) for one in choices]


def _by_words(choices: Sequence[ScoredAnswer]) -> dict[str, list[tuple[str, str | None]]]:
    """For each topic whose questions all offer the same words: (true words, stated words)."""
    by_topic: dict[str, list[ScoredAnswer]] = defaultdict(list)
    for one in choices:
        by_topic[f"{one.sample.capability} / {one.sample.topic or '(no topic)'}"].append(one)
    found = {}
    for topic, group in sorted(by_topic.items()):
        offered = [options(one.sample.question) for one in group]
        if len({frozenset(words.values()) for words in offered}) == 1 and len(group) > 1:
            pairs = zip(group, offered, strict=True)
            found[topic] = [(words[one.true or ""], words.get(one.stated or "")) for one, words in pairs]
    return found


def tags_section(reports: Reports) -> Section | None:
    """Object tags of open answers."""
    rows = tuple(
        (row["capability"], str(row["n"]), share(row["precision"]), share(row["recall"]), share(row["f1"]), str(row["malformed"]))
        for row in reports.main["tags"]
    )
    header = ("capability", "n", "precision", "recall", "F1", "malformed")
    caption = "Object tags of open answers: same camera, closer than 16 px (L1) at 1600x900, one to one"
    return section("Object tags", [Table(caption, header, rows)] if rows else [])
