"""A document as Markdown. Charts become tables of the same numbers; pictures become their paths.

Markdown hands HTML through, so what comes from a record or a model is escaped as for HTML, and Markdown's own signs with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from drivekd.evaluate.sheet import document as d
from drivekd.evaluate.sheet.document import printable

_SIGNS = re.compile(r"([\\`*_\[\]#|~])")
_LINE_START = re.compile(r"^(\s*)([-+]|\d+[.)])(\s)", re.MULTILINE)


def markdown_from_document(document: d.Document) -> str:
    """The whole text."""
    parts = [f"# {_e(document.title)}", _e(document.summary)]
    for section in document.sections:
        parts.append(f"## {_e(section.title)}")
        parts += [_DRAW[type(block)](block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _e(text: str) -> str:
    """One line of plain words."""
    flat = " ".join(printable(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINE_START.sub(r"\1\\\2\3", _SIGNS.sub(r"\\\1", flat))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> str:
    head = f"| {' | '.join(map(_e, header))} |"
    line = "|" + "|".join(" --- " if column < labels else " ---: " for column in range(len(header))) + "|"
    body = (f"| {' | '.join(('&nbsp;&nbsp;' if cell.startswith('  ') else '') + _e(cell) for cell in row)} |" for row in rows)
    return "\n".join([head, line, *body])


def _captioned(caption: str, table: str) -> str:
    return f"{_e(caption)}\n\n{table}"


def _whiskers(block: d.Whiskers) -> str:
    rows = [
        (
            "  " * row.level + row.label,
            str(row.n),
            d.share(row.value),
            d.interval_text(row.interval),
            d.share(row.majority),
            d.share(row.random),
        )
        for row in block.rows
    ]
    return _captioned(block.caption, _table(("", "n", "value", "95 % interval", "majority", "random"), rows))


def _differences(block: d.Differences) -> str:
    rows = [
        ("  " * row.level + row.label, str(row.n), d.signed_share(row.value), d.interval_text(row.interval, signed=True))
        for row in block.rows
    ]
    return _captioned(block.caption, _table(("", "n", "difference", "95 % interval"), rows))


def _heat(block: d.Heat) -> str:
    write = d.signed_share if block.signed else d.share
    rows = [(name, *map(write, values)) for name, values in block.rows]
    return _captioned(block.caption, _table((block.corner, *block.columns), rows))


def _confusion(block: d.Confusion) -> str:
    rows = [(name, *map(str, counts)) for name, counts in zip(block.true, block.counts, strict=True)]
    return _captioned(block.caption, _table(("true / answered", *block.predicted), rows))


def _reliability(block: d.Reliability) -> str:
    rows = [(d.share(one.confidence), d.share(one.accuracy), str(one.n)) for one in block.bins]
    return _captioned(block.caption, _table(("confidence", "share right", "n"), rows, labels=0))


def _case(case: d.Case) -> str:
    topic = f"{case.capability} / {case.topic}" if case.topic else case.capability
    where = f" ({case.where})" if case.where else ""
    lines = [f"### {_e(topic)}: {_e(case.source + where)}", f"Question: {_e(case.question)}", f"Reference: {_e(case.reference)}"]
    for answer in case.answers:
        lines.append(f"{_e(answer.who)} ({_e(answer.verdict)}): {_e(answer.text) or '(nothing)'}")
    pictures = [f"{picture.camera}: {picture.path}" if picture.camera else picture.path for picture in case.pictures]
    return "\n\n".join([*lines, *([f"Pictures: {_e(', '.join(pictures))}"] if pictures else [])])


_DRAW: dict[type, Callable[[Any], str]] = {
    d.Facts: lambda block: _table(("", ""), block.rows, labels=2),
    d.Note: lambda block: f"**{_e(block.text)}**" if block.warning else _e(block.text),
    d.Table: lambda block: _captioned(block.caption, _table(block.header, block.rows, block.labels)),
    d.Whiskers: _whiskers,
    d.Differences: _differences,
    d.Heat: _heat,
    d.Confusion: _confusion,
    d.Reliability: _reliability,
    d.Case: _case,
}
