"""A document as one HTML file that needs nothing else: no script, no request (its own policy forbids both), pictures inside.

Everything that comes from a record, a model or a path goes through `escaped`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from drivekd.evaluate.sheet import document as d
from drivekd.evaluate.sheet.charts import differences_svg, escaped, reliability_svg, whiskers_svg
from drivekd.evaluate.sheet.style import CSS

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_LEGEND = (
    '<div class="legend"><span><svg viewBox="0 0 26 14"><line class="whisker" x1="1" x2="25" y1="7" y2="7"/>'
    '<circle class="dot" cx="13" cy="7" r="4.5"/></svg>this model, 95 % interval</span>'
    '<span><svg viewBox="0 0 26 14"><polygon class="majority" points="13,2 18,7 13,12 8,7"/></svg>most common answer</span>'
    '<span><svg viewBox="0 0 26 14"><line class="random" x1="13" x2="13" y1="1" y2="13"/></svg>random guess</span></div>'
)


def page_from_document(document: d.Document) -> str:
    """The whole page. A picture that several cases show stands in it once."""
    pictures = _Pictures()
    body = "".join(_section(section, pictures) for section in document.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escaped(document.title)}</title><style>{CSS}</style></head>\n<body>{pictures.definitions()}"
        f'<h1>{escaped(document.title)}</h1><p class="lead">{escaped(document.summary)}</p>\n{body}'
        "<footer>One file: it needs no network and runs nothing. sheet.md has the same numbers.</footer></body></html>\n"
    )


class _Pictures:
    """Each JPEG once, as an SVG image that the cases use by its number."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}
        self._images: list[str] = []

    def name(self, picture: d.Picture) -> str:
        assert picture.jpeg is not None
        if picture.jpeg not in self._names:
            name = f"p{len(self._names)}"
            self._names[picture.jpeg] = name
            data = base64.b64encode(picture.jpeg).decode()
            size = f'width="{picture.width_px}" height="{picture.height_px}"'
            self._images.append(f'<image id="{name}" {size} href="data:image/jpeg;base64,{data}"/>')
        return self._names[picture.jpeg]

    def definitions(self) -> str:
        """To be drawn nowhere by itself; display:none would keep browsers from decoding them."""
        images = "".join(self._images)
        return (
            f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>{images}</defs></svg>'
            if images
            else ""
        )


def _section(section: d.Section, pictures: _Pictures) -> str:
    return f"<section><h2>{escaped(section.title)}</h2>{''.join(_block(block, pictures) for block in section.blocks)}</section>\n"


def _block(block: d.Block, pictures: _Pictures) -> str:
    if isinstance(block, d.Case):
        return _case(block, pictures)
    draw: Callable[[Any], str] = _DRAW[type(block)]
    return draw(block)


def _facts(block: d.Facts) -> str:
    rows = "".join(f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>" for name, value in block.rows)
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def _note(block: d.Note) -> str:
    return f'<p class="warning">{escaped(block.text)}</p>' if block.warning else f"<p>{escaped(block.text)}</p>"


def _table(block: d.Table) -> str:
    def kind(column: int, cell: str = "") -> str:
        names = ["word"] if column < block.labels else []
        names += ["separate"] if column == block.separate else []
        names += ["part"] if column == 0 and cell.startswith("  ") else []
        return f' class="{" ".join(names)}"' if names else ""

    head = "".join(f"<th{kind(column)}>{escaped(name)}</th>" for column, name in enumerate(block.header))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind(column, cell)}>{escaped(cell.strip())}</td>" for column, cell in enumerate(row)) + "</tr>"
        for row in block.rows
    )
    return _captioned(block.caption, f"<table><tr>{head}</tr>{rows}</table>")


def _captioned(caption: str, table: str, *, beside: bool = False) -> str:
    """A table that scrolls by itself where the page is narrow. beside: small ones share a line."""
    kind = ' class="beside"' if beside else ""
    return f'<figure{kind}><figcaption>{escaped(caption)}</figcaption><div class="scroll">{table}</div></figure>'


def _figure(caption: str, svg: str, legend: str = "", *, beside: bool = False) -> str:
    return f'<figure class="{"beside" if beside else "wide"}"><figcaption>{escaped(caption)}</figcaption>{legend}{svg}</figure>'


def _heat(block: d.Heat) -> str:
    head = "".join(f"<th>{escaped(name)}</th>" for name in block.columns)
    rows = "".join(
        f'<tr><th class="word">{escaped(name)}</th>{"".join(_cell(value, block.signed) for value in values)}</tr>'
        for name, values in block.rows
    )
    head = f'<tr><th class="word">{escaped(block.corner)}</th>{head}</tr>'
    return _captioned(block.caption, f'<table class="heat">{head}{rows}</table>')


def _cell(value: float | None, signed: bool) -> str:
    """A share's colour is as strong as it is large; a difference's says which way, and is full at .5."""
    if value is None:
        return '<td class="cell">-</td>'
    color = "--own" if not signed or value >= 0 else "--majority"
    percent = round(min(1.0, abs(value) * (2 if signed else 1)) * 45)
    text = d.signed_share(value) if signed else d.share(value)
    return f'<td class="cell" style="background:color-mix(in srgb,var({color}) {percent}%,transparent)">{text}</td>'


def _confusion(block: d.Confusion) -> str:
    head = "".join(f"<th>{escaped(name)}</th>" for name in block.predicted)
    rows = ""
    for name, counts in zip(block.true, block.counts, strict=True):
        total = sum(counts) or 1
        cells = ""
        for predicted, count in zip(block.predicted, counts, strict=True):
            color = "--own" if predicted == name else "--majority"
            share = f"background:color-mix(in srgb,var({color}) {round(45 * count / total)}%,transparent)"
            cells += f'<td class="cell" style="{share}">{count}</td>'
        rows += f'<tr><th class="word">{escaped(name)}</th>{cells}</tr>'
    table = f'<table class="heat"><tr><th class="word">true \\ answered</th>{head}</tr>{rows}</table>'
    return _captioned(block.caption, table, beside=True)


def _case(case: d.Case, pictures: _Pictures) -> str:
    topic = f"{case.capability} / {case.topic}" if case.topic else case.capability
    shown = "".join(_picture(picture, pictures) for picture in case.pictures)
    layout = {1: " single", 6: " around"}.get(len(case.pictures), "")
    answers = "".join(_answer(answer) for answer in case.answers)
    origin = " · ".join(name for name in (case.source, case.where) if name)
    return (
        f"<article><h3>{escaped(topic)} <small>{escaped(origin)}</small></h3>"
        f'<div class="pictures{layout}">{shown}</div><dl><dt>question</dt><dd class="text">{escaped(case.question)}</dd>'
        f'<dt>reference</dt><dd class="text">{escaped(case.reference)}</dd>{answers}</dl></article>'
    )


def _answer(answer: d.Answer) -> str:
    kind = {True: "good", False: "bad", None: ""}[answer.good]
    return (
        f'<dt>{escaped(answer.who)} <span class="verdict {kind}">{escaped(answer.verdict)}</span></dt>'
        f'<dd class="text">{escaped(answer.text) or "(nothing)"}</dd>'
    )


def _picture(picture: d.Picture, pictures: _Pictures) -> str:
    caption = f"<figcaption>{escaped(picture.camera or picture.path)}</figcaption>"
    if picture.jpeg is None:
        return f'<figure><div class="absent">{escaped(picture.problem)}</div>{caption}</figure>'
    width, height = picture.width_px, picture.height_px
    marks = "".join(_mark(mark, width, height) for mark in picture.marks)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(picture.camera or picture.path)}">'
        f'<use href="#{pictures.name(picture)}"/>{marks}</svg>{caption}</figure>'
    )


_COLORS = {"question": "#7dd3fc", "reference": "#4ade80", "model": "#fb923c"}


def _mark(mark: d.Mark, width: int, height: int) -> str:
    """A square for what is asked about, a ring for the true answer, a cross for the model's; light on dark, for any picture."""
    x, y, r = mark.x * width, mark.y * height, max(4.0, width / 40)
    shape = {
        "question": f"M{x - 1.3 * r:.1f} {y - 1.3 * r:.1f}h{2.6 * r:.1f}v{2.6 * r:.1f}h{-2.6 * r:.1f}z",
        "reference": f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0z",
        "model": f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}",
    }[mark.of]
    lines = (("#000", 4), (_COLORS[mark.of], 2))
    drawn = "".join(f'<path d="{shape}" fill="none" stroke="{color}" stroke-width="{wide}"/>' for color, wide in lines)
    return f"<g><title>{escaped(mark.label)}</title>{drawn}</g>"


_DRAW: dict[type, Callable[[Any], str]] = {
    d.Facts: _facts,
    d.Note: _note,
    d.Table: _table,
    d.Whiskers: lambda block: _figure(block.caption, whiskers_svg(block), _LEGEND),
    d.Differences: lambda block: _figure(block.caption, differences_svg(block)),
    d.Heat: _heat,
    d.Confusion: _confusion,
    d.Reliability: lambda block: _figure(block.caption, reliability_svg(block), beside=True),
}
