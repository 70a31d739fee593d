"""Two or more runs beside each other: `write_comparison`. The first is what the others are measured against.

Compared are the questions that all of them answered and that have a score: choice and yes/no questions by accuracy, open ones
with tags by the F1 of each, other open ones by ROUGE_L. comparison.json holds the numbers, sheet.md and sheet.html show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from drivekd.data.json_file import write_json
from drivekd.errors import UsageError
from drivekd.evaluate.predictions import IDENTITY_FILE
from drivekd.evaluate.sheet.cases import case_of, in_turns
from drivekd.evaluate.sheet.document import (
    Block,
    Differences,
    Document,
    Note,
    Section,
    Table,
    Whisker,
    interval_text,
    section,
    share,
    signed_share,
)
from drivekd.evaluate.sheet.matching import Matched, match
from drivekd.evaluate.sheet.paired import Paired, paired
from drivekd.evaluate.sheet.reports import CLEAN, Reports, read_reports
from drivekd.evaluate.sheet.scored import Kind, ScoredAnswer, read_scored
from drivekd.evaluate.sheet.sections import few_scenes
from drivekd.evaluate.sheet.sheet import write_document
from drivekd.evaluate.sheet.thumbnails import Thumbnails
from drivekd.sample import CAPABILITIES

NUMBERS = "comparison.json"
KINDS: Mapping[Kind, str] = {
    "closed": "Choice and yes/no questions: accuracy",
    "structured": "Answers as JSON: share that states what the record does",
    "tags": "Open questions with object tags: mean F1 of a question",
    "words": "Other open questions: mean ROUGE_L",
}
HEADER = ("group", "pictures", "n", "first", "second", "difference", "95 % interval", "wins", "losses", "ties")
NUM_CASES = 8  # of each kind and pair of runs
Pair: TypeAlias = tuple[ScoredAnswer, ScoredAnswer]


@dataclass(frozen=True)
class ComparedRow:
    """One group of questions in two runs. kind: closed = accuracy, tags = F1, words = ROUGE_L. scope, capability, topic: as in
    a report."""

    setting: str
    kind: Kind
    scope: Literal["all", "capability", "topic"]
    capability: str
    topic: str
    result: Paired

    @property
    def label(self) -> str:
        """For people."""
        return {"all": "all", "capability": self.capability}.get(self.scope, self.topic or "(no topic)")


@dataclass(frozen=True)
class Comparison:
    """Two runs: names, rows, and the questions they answered differently well."""

    first: str
    second: str
    rows: tuple[ComparedRow, ...]
    wins: tuple[Pair, ...]
    losses: tuple[Pair, ...]

    def to_json(self) -> dict[str, Any]:
        """Names and rows."""
        rows = [{**asdict(row), "result": {**asdict(row.result), "interval": list(row.result.interval)}} for row in self.rows]
        return {"first": self.first, "second": self.second, "rows": rows}


@dataclass(frozen=True)
class Compared:
    """page: of the sheet that was written. tables: (title, header, rows), for each run after the first and each kind of
    questions. notes: what a reader of them must know."""

    page: Path
    tables: list[tuple[str, list[str], list[list[str]]]]
    notes: list[str]


def write_comparison(folders: Sequence[Path], out: Path) -> Compared:
    """Compare the runs of evaluation folders with the first one; write comparison.json, sheet.md and sheet.html into `out`.

    Raises UsageError for fewer than two folders, one that holds no finished evaluation, runs that share no question, or an `out`
    that is an evaluation itself; DataError for a broken file.
    """
    if len(folders) < 2:
        raise UsageError(f"a comparison needs two evaluation folders or more, found {len(folders)}")
    if (out / IDENTITY_FILE).exists():
        raise UsageError(f"{out} is an evaluation's folder, whose own sheet would be lost; give a new --out")
    reports = [read_reports(folder) for folder in folders]
    scored = [read_scored(report.folder, structured=report.structured) for report in reports]
    names = _names(reports)
    matched = match([run.answers for run in scored])
    if not matched.questions:
        raise UsageError(f"{' and '.join(map(str, folders))} have no question in common; nothing can be compared")
    comparisons = [_compare(names[0], names[index], matched, index) for index in range(1, len(folders))]
    write_json(out / NUMBERS, {"runs": _facts(names, reports, matched), "comparisons": [one.to_json() for one in comparisons]})
    page = write_document(_document(names, reports, matched, comparisons), out)
    few = few_scenes(_scenes(matched))
    return Compared(page, [table for one in comparisons for table in _shown(one)], [few.text] if few is not None else [])


def _scenes(matched: Matched) -> int:
    return len({question[0].cluster for question in matched.questions})


def _shown(comparison: Comparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """A table for each kind of questions."""
    for kind, caption in KINDS.items():
        rows = [list(_cells(row)) for row in comparison.rows if row.kind == kind and row.scope != "topic"]
        if rows:
            yield f"{comparison.second} (second) minus {comparison.first} (first). {caption}", list(HEADER), rows


def _names(reports: Sequence[Reports]) -> list[str]:
    """Models' names, with their folders' where they are the same."""
    names = [report.name for report in reports]
    if len(set(names)) == len(names):
        return names
    return [f"{report.name} ({report.folder})" for report in reports]


def _facts(names: Sequence[str], reports: Sequence[Reports], matched: Matched) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "folder": str(report.folder),
            "digest": report.main.get("digest"),
            "data": report.run.get("is", {}).get("data"),
            "compared": len(matched.questions),
            "only_here": missing,
        }
        for name, report, missing in zip(names, reports, matched.unmatched, strict=True)
    ]


def _compare(first: str, second: str, matched: Matched, index: int) -> Comparison:
    pairs = [(question[0], question[index]) for question in matched.questions]
    pairs = [(a, b) for a, b in pairs if a.kind == b.kind and a.score is not None and b.score is not None]
    settings = sorted({a.setting for a, _ in pairs}, key=lambda name: (name != CLEAN, name))
    rows = [row for name in settings for row in _rows(name, _in(pairs, name), topics=name == settings[0])]
    main = _in(pairs, settings[0]) if settings else []
    return Comparison(
        first,
        second,
        tuple(rows),
        wins=tuple(pair for pair in main if _scores(pair)[1] > _scores(pair)[0]),
        losses=tuple(pair for pair in main if _scores(pair)[1] < _scores(pair)[0]),
    )


def _in(pairs: Sequence[Pair], setting: str) -> list[Pair]:
    return [pair for pair in pairs if pair[0].setting == setting]


def _scores(pair: Pair) -> tuple[float, float]:
    return pair[0].score or 0.0, pair[1].score or 0.0


def _rows(setting: str, pairs: Sequence[Pair], *, topics: bool) -> list[ComparedRow]:
    """Topics under the first setting alone: a table of them for every setting is read by nobody."""
    rows = []
    for kind in KINDS:
        group = [pair for pair in pairs if pair[0].kind == kind]
        if group:
            rows.append(ComparedRow(setting, kind, "all", "", "", _paired(group)))
        for capability in CAPABILITIES:
            of_capability = [pair for pair in group if pair[0].sample.capability == capability]
            if not of_capability:
                continue
            rows.append(ComparedRow(setting, kind, "capability", capability, "", _paired(of_capability)))
            for topic in sorted({pair[0].sample.topic for pair in of_capability}) if topics else ():
                of_topic = [pair for pair in of_capability if pair[0].sample.topic == topic]
                rows.append(ComparedRow(setting, kind, "topic", capability, topic, _paired(of_topic)))
    return rows


def _paired(pairs: Sequence[Pair]) -> Paired:
    first, second = zip(*map(_scores, pairs), strict=True)
    return paired(first, second, [pair[0].cluster for pair in pairs])


def _document(
    names: Sequence[str],
    reports: Sequence[Reports],
    matched: Matched,
    comparisons: Sequence[Comparison],
) -> Document:
    pictures = Thumbnails()
    parts: list[Section | None] = [_runs_section(names, reports, matched)]
    for comparison in comparisons:
        parts.append(_difference_section(comparison, _scenes(matched)))
        parts += _case_sections(comparison, pictures)
    title = f"Comparison with {names[0]}: {', '.join(names[1:])}"
    summary = f"{len(matched.questions)} answers of each run are to the same questions about the same pictures."
    return Document(title, summary, tuple(part for part in parts if part is not None))


def _runs_section(names: Sequence[str], reports: Sequence[Reports], matched: Matched) -> Section | None:
    facts = _facts(names, reports, matched)
    header = ("run", "folder", "compared", "only here")
    rows = tuple((one["name"], one["folder"], str(one["compared"]), str(one["only_here"])) for one in facts)
    blocks: list[Block | None] = [Table("Answers that all runs have, and those that only this one has", header, rows, labels=2)]
    if any(matched.unmatched):
        blocks.append(
            Note("Runs were asked different questions; only those that all of them answered are compared.", warning=True)
        )
    if len({one["digest"] for one in facts}) < len(facts):
        blocks.append(Note("Some of these runs are of one and the same model, by its digest."))
    return section("Runs", blocks)


def _difference_section(comparison: Comparison, scenes: int) -> Section | None:
    title = f"{comparison.second} minus {comparison.first}"
    if not comparison.rows:
        return section(title, [Note("None of the shared questions has a score.", warning=True)])
    main = comparison.rows[0].setting
    rows = [row for row in comparison.rows if row.setting == main]
    chart = Differences(
        "Difference of the shares right with 95 % intervals (paired, draws scenes); right of 0 the second is better",
        tuple(_whisker(row) for row in rows if row.kind in ("closed", "structured")),
    )
    blocks: list[Block | None] = [
        _verdict(comparison),
        few_scenes(scenes),
        Note("Each interval is for itself: of twenty groups without any difference about one excludes 0 by chance."),
        chart if chart.rows else None,
        *(_table(caption, comparison, kind) for kind, caption in KINDS.items()),
    ]
    return section(title, blocks)


def _table(caption: str, comparison: Comparison, kind: Kind) -> Table | None:
    rows = tuple(_cells(row) for row in comparison.rows if row.kind == kind)
    return Table(caption, HEADER, rows, labels=2) if rows else None


def _verdict(comparison: Comparison) -> Note:
    whole = comparison.rows[0]
    asked = {"closed": "choice and yes/no questions", "structured": "answers as JSON"}.get(whole.kind, "open questions")
    what = f"On all {whole.result.n} {asked} ({whole.setting})"
    how = "better" if whole.result.difference > 0 else "worse"
    if whole.result.is_decided:
        return Note(f"{what} the second is {how} by {abs(whole.result.difference):.3f}, and the interval excludes 0.")
    return Note(f"{what} the interval holds 0: these questions do not tell the two runs apart.", warning=True)


def _whisker(row: ComparedRow) -> Whisker:
    return Whisker(row.label, row.result.n, row.result.difference, row.result.interval, level=1 if row.scope == "topic" else 0)


def _cells(row: ComparedRow) -> tuple[str, ...]:
    one = row.result
    return (
        ("  " if row.scope == "topic" else "") + row.label,
        row.setting,
        str(one.n),
        share(one.first),
        share(one.second),
        signed_share(one.difference),
        interval_text(one.interval, signed=True),
        str(one.wins),
        str(one.losses),
        str(one.ties),
    )


def _case_sections(comparison: Comparison, pictures: Thumbnails) -> list[Section | None]:
    def blocks(pairs: Sequence[Pair]) -> list[Block]:
        by_second = {id(pair[1]): pair for pair in pairs}
        chosen = in_turns(sorted((pair[1] for pair in pairs), key=lambda one: -one.surety), NUM_CASES)
        named = [by_second[id(one)] for one in chosen]
        return [case_of([(comparison.first, a), (comparison.second, b)], pictures) for a, b in named]

    return [
        section(f"Where {comparison.second} is better", blocks(comparison.wins)),
        section(f"Where {comparison.first} is better", blocks(comparison.losses)),
    ]
