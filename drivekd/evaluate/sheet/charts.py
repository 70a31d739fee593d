"""Charts as inline SVG, drawn by hand: their colours are the page's (light, dark, print), and all of their text is escaped.

Units are those of the viewBox; the page scales them. Every number in a chart stands in a table beside it or in its row's label.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from drivekd.evaluate.sheet.document import (
    Differences,
    Reliability,
    Whisker,
    Whiskers,
    interval_text,
    printable,
    share,
    signed_share,
)

WIDTH, LABELS, NUMBERS = 720, 190, 170  # of the whole chart, of what is left and right of the axis
ROW, TOP, BOTTOM = 22, 8, 26
SMALL = 240  # side of the reliability diagram's square


def escaped(text: str) -> str:
    """As HTML and SVG take it."""
    return html.escape(printable(text))


def whiskers_svg(chart: Whiskers) -> str:
    """Dots with whiskers from 0 to 1; majority and random beside them."""
    rows = [_row(index, row, 0.0, 1.0, share(row.value), interval_text(row.interval)) for index, row in enumerate(chart.rows)]
    return _chart(chart.caption, rows, [0.0, 0.25, 0.5, 0.75, 1.0], 0.0, 1.0)


def differences_svg(chart: Differences) -> str:
    """The same around 0, as far as the widest whisker."""
    far = max([0.05, *(abs(end) for row in chart.rows for end in (row.value, *row.interval))])
    far = next(round_far for round_far in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, far) if round_far >= far)
    rows = [
        _row(index, row, -far, far, signed_share(row.value), interval_text(row.interval, signed=True))
        for index, row in enumerate(chart.rows)
    ]
    return _chart(chart.caption, rows, [-far, -far / 2, 0.0, far / 2, far], -far, far)


def _chart(caption: str, rows: Sequence[str], ticks: Sequence[float], low: float, high: float) -> str:
    bottom = TOP + ROW * len(rows)
    grid = "".join(_tick(value, _x(value, low, high), bottom, zero=value == 0 and low < 0) for value in ticks)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="img" aria-label="{escaped(caption)}">'
        f"{grid}{''.join(rows)}</svg>"
    )


def _tick(value: float, x: float, bottom: int, *, zero: bool) -> str:
    kind = "zero" if zero else "grid"
    text = f"{value:+.2f}" if zero or value < 0 else f"{value:.2f}"
    return (
        f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text.removeprefix("+")}</text>'
    )


def _x(value: float, low: float, high: float) -> float:
    span = WIDTH - LABELS - NUMBERS
    return LABELS + (min(high, max(low, value)) - low) / (high - low) * span


def _row(index: int, row: Whisker, low: float, high: float, value: str, interval: str) -> str:
    y = TOP + ROW * index + ROW / 2
    left, right = (_x(end, low, high) for end in row.interval)
    name = escaped(_short(row.label, 26 if row.level == 0 else 24))
    strong = "strong" if row.level == 0 else "part"
    return (
        f'<g class="row {strong}"><title>{escaped(row.label)}: {value} ({interval}), n = {row.n}</title>'
        f'<text class="name" x="{8 + 12 * row.level}" y="{y + 4:.1f}">{name}</text>'
        f"{_guess('random', row.random, y, low, high)}{_guess('majority', row.majority, y, low, high)}"
        f'<line class="whisker" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle class="dot" cx="{_x(row.value, low, high):.1f}" cy="{y:.1f}" r="{4.5 if row.level == 0 else 3.5}"/>'
        f'<text class="number" x="{WIDTH - NUMBERS + 14}" y="{y + 4:.1f}">{value} <tspan class="faint">{interval}</tspan></text>'
        "</g>"
    )


def _guess(kind: str, value: float | None, y: float, low: float, high: float) -> str:
    """Majority as a diamond, random as a bar: told apart without colours, too."""
    if value is None:
        return ""
    x = _x(value, low, high)
    if kind == "random":
        return f'<line class="random" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 7:.1f}" y2="{y + 7:.1f}"/>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in ((0, -5), (5, 0), (0, 5), (-5, 0)))
    return f'<polygon class="majority" points="{points}"/>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def reliability_svg(chart: Reliability) -> str:
    """A bin a dot, as large as its share of the answers; the diagonal is what a sure word is worth."""
    total = sum(one.n for one in chart.bins) or 1
    left, top = 46, 10

    def place(confidence: float, accuracy: float) -> tuple[float, float]:
        return left + confidence * SMALL, top + (1 - accuracy) * SMALL

    ticks = "".join(
        f'<text class="tick" x="{place(value, 0)[0]:.1f}" y="{top + SMALL + 16}" text-anchor="middle">{value:.2f}</text>'
        f'<text class="tick" x="{left - 6}" y="{place(0, value)[1] + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        for value in (0.0, 0.5, 1.0)
    )
    dots = "".join(
        f'<circle class="dot soft" cx="{x:.1f}" cy="{y:.1f}" r="{3 + 14 * (one.n / total) ** 0.5:.1f}">'
        f"<title>confidence {share(one.confidence)}, right {share(one.accuracy)}, n = {one.n}</title></circle>"
        for one in chart.bins
        for x, y in [place(one.confidence, one.accuracy)]
    )
    return (
        f'<svg class="chart square" viewBox="0 0 {left + SMALL + 20} {top + SMALL + 38}" role="img" '
        f'aria-label="{escaped(chart.caption)}">'
        f'<rect class="frame" x="{left}" y="{top}" width="{SMALL}" height="{SMALL}"/>'
        f'<line class="zero" x1="{left}" y1="{top + SMALL}" x2="{left + SMALL}" y2="{top}"/>{ticks}{dots}'
        f'<text class="tick" x="{left + SMALL / 2}" y="{top + SMALL + 32}" text-anchor="middle">confidence</text>'
        f'<text class="tick" transform="translate(12 {top + SMALL / 2}) rotate(-90)" text-anchor="middle">share right</text>'
        "</svg>"
    )
