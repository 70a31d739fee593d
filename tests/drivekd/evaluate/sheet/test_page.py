"""The page: one file, nothing of a model's is more than text, the same numbers as in Markdown, never too large."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scored_evaluation import evaluation, right_in, samples, with_text, write_lines

from drivekd.evaluate.predictions import answers_in
from drivekd.evaluate.sheet import document as d
from drivekd.evaluate.sheet.markdown import markdown_from_document
from drivekd.evaluate.sheet.page import page_from_document
from drivekd.evaluate.sheet.sheet import sheet_of, write_sheet
from drivekd.evaluate.sheet.thumbnails import Thumbnails

ATTACKS = (
    "<script>alert(1)</script>",
    "a zero \x00, a colour \x1b[31m, the other way \u202e",
    "</style></svg></title><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '<a href="javascript:alert(1)">x</a><link rel=stylesheet href=//evil.example/x.css>',
    "&lt;b&gt; | `code` | [x](http://evil.example) **bold**\n# heading\n1. list\n- item",
    "half an emoji \ud83d",
)
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Tags with attributes, and the text of every element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return evaluation(tmp_path / "eval", samples(tmp_path), right_in(0.6), settings=["clean", "NoImage", "Fog"])


def page_of(folder: Path) -> Page:
    return Page(write_sheet(folder).read_text(encoding="utf-8"))


def check_harmless(page: Page) -> None:
    """No script, no handler, nothing that is fetched; every element is closed by its own end."""
    assert page.open == []
    known = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "section",
        "figure",
        "figcaption",
        "div",
        "span",
    }
    known |= {"table", "tr", "th", "td", "article", "small", "dl", "dt", "dd", "footer"}
    known |= {"svg", "g", "line", "circle", "polygon", "rect", "text", "tspan", "defs", "image", "use", "path"}
    assert {tag for tag, _ in page.tags} <= known
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "action", "srcset", "background")]
        for name in ("href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#p", "data:image/jpeg;base64,")), (tag, value)
        assert "url(" not in (attributes.get("style") or "")


def test_a_page_needs_nothing_and_runs_nothing(folder: Path) -> None:
    text = write_sheet(folder).read_text(encoding="utf-8")
    page = Page(text)
    check_harmless(page)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    assert "prefers-color-scheme:dark" in style and "@media print" in style


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_a_record_or_a_model_says_is_text(folder: Path, attack: str) -> None:
    lines = []
    for line in answers_in(folder):
        hostile = with_text(line, attack)
        sample = replace(
            hostile.answered.sample,
            source=attack,
            question=attack + line.answered.sample.question,
            topic=attack,
            scene=attack,
            frame=attack,
            cameras=(attack, attack),
            images=(Path(attack.replace("/", "")), line.answered.sample.images[1]),
        )
        lines.append(replace(hostile, answered=replace(hostile.answered, sample=sample)))
    write_lines(folder, lines)
    page = page_of(folder)
    check_harmless(page)
    shown = re.sub("[\x00\x1b\u202e]", "\ufffd", attack.replace("\ud83d", "?"))
    assert sum(text == shown for text in page.texts) >= 12  # each case's answer, word for word
    markdown = (folder / "sheet.md").read_text(encoding="utf-8")
    assert not re.search(r"<(?!c1,)", markdown)
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]\(", markdown)


def test_a_table_in_markdown_keeps_its_columns(folder: Path) -> None:
    table = d.Table("a | b", ("x|y", "n"), (("a|b\nc", "1"), ("  `d`", "2")))
    lines = markdown_from_document(d.Document("t", "s", (d.Section("h", (table,)),))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3, 3]


def numbers(text: str) -> set[str]:
    """Every number with decimals."""
    return set(re.findall(r"[+-]?\d+\.\d{3}\b", text))


def test_markdown_and_page_say_the_same_numbers(folder: Path) -> None:
    page = page_of(folder)
    in_page = numbers(" ".join(page.texts))
    in_markdown = numbers((folder / "sheet.md").read_text(encoding="utf-8"))
    assert in_page == in_markdown
    assert len(in_page) > 20


def rows_of(document: d.Document) -> Iterator[d.Block]:
    return (block for section in document.sections for block in section.blocks)


def test_every_kind_of_block_is_drawn() -> None:
    blocks: tuple[d.Block, ...] = (
        d.Facts((("model", "m"),)),
        d.Note("a note", warning=True),
        d.Table("table", ("a", "n", "judge"), (("x", "1", "2"),), separate=2),
        d.Whiskers("whiskers", (d.Whisker("w", 3, 0.5, (0.25, 0.75), 0.4, 0.3),)),
        d.Differences("differences", (d.Whisker("w", 3, -0.125, (-0.25, 0.05)),)),
        d.Heat("heat", "r", ("c",), (("x", (0.5,)), ("y", (None,))), signed=True),
        d.Confusion("confusion", ("A",), ("A", "unparsed"), ((3, 1),)),
        d.Reliability("reliability", (d.ReliabilityBin(0.875, 0.625, 8), d.ReliabilityBin(0.5, 0.25, 8))),
        d.Case("s", "w", "planning", "t", "q", "r", (d.Answer("answer", "", "says nothing", False),)),
    )
    document = d.Document("title", "summary", (d.Section("section", blocks),))
    page = Page(page_from_document(document))
    check_harmless(page)
    markdown = markdown_from_document(document)
    for words in ("a note", "table", "whiskers", "differences", "heat", "confusion", "reliability", "(nothing)", "says nothing"):
        assert words in " ".join(page.texts)
        assert words in markdown
    assert {"-0.125", "+0.500", "0.875", "0.625"} <= numbers(markdown)


def test_an_axis_of_differences_holds_every_whisker() -> None:
    for far in (0.01, 0.3, 0.33, 1.0):
        chart = d.Differences("c", (d.Whisker("w", 3, 0.0, (-far, far / 2)),))
        page = Page(page_from_document(d.Document("t", "s", (d.Section("h", (chart,)),))))
        (whisker,) = [attributes for tag, attributes in page.tags if attributes.get("class") == "whisker"]
        assert 190 <= float(whisker["x1"] or 0) < float(whisker["x2"] or 0) <= 550
        ticks = [text for text in page.texts if re.fullmatch(r"-?\d\.\d\d", text)]
        assert len(set(ticks)) == len(ticks) == 5


# --- pictures -------------------------------------------------------------------------------------------------------


def noisy(path: Path, width: int = 1600, height: int = 900) -> Path:
    """A picture that JPEG cannot make small."""
    rng = np.random.default_rng(abs(hash(path.name)) % 2**32)
    small = rng.integers(0, 255, (height // 4, width // 4, 3), np.uint8)
    Image.fromarray(small).resize((width, height)).save(path, quality=80)
    return path


def test_pictures_stay_within_their_budget_and_the_rest_says_so(tmp_path: Path) -> None:
    paths = [noisy(tmp_path / f"{number}.jpg", 640, 360) for number in range(6)]
    one = Thumbnails().of(paths[:1], ())[0]
    assert one.jpeg is not None and (one.width_px, one.height_px) == (320, 180)
    pictures = Thumbnails(budget_bytes=3 * len(one.jpeg) + 2000).of(paths, ())
    assert sum(len(picture.jpeg) for picture in pictures if picture.jpeg) <= 3 * len(one.jpeg) + 2000
    assert [picture.jpeg is None for picture in pictures] == [False] * 3 + [True] * 3
    assert pictures[-1].problem == f"{paths[-1]}: not shown, the page is full"


def test_a_full_page_is_at_most_3_mb(tmp_path: Path) -> None:
    """24 cases of six cameras each, every one another picture, and answers that never end."""
    asked = samples(tmp_path, 24)
    shown = [noisy(tmp_path / f"noise-{number}.jpg", 400, 225) for number in range(160)]
    asked = [
        replace(one, images=tuple(shown[(6 * n + k) % 160] for k in range(6)), cameras=(), answer_form=one.answer_form)
        for n, one in enumerate(asked)
    ]
    folder = evaluation(tmp_path / "eval", asked, right_in(0.5, wrong="A and B. " * 3000))
    page = write_sheet(folder)
    assert 1_000_000 < page.stat().st_size < 3_000_000
    assert page.read_text(encoding="utf-8").count("<article>") == 24


def test_a_picture_that_several_cases_show_is_there_once(tmp_path: Path) -> None:
    asked = samples(tmp_path, 3)
    text = write_sheet(evaluation(tmp_path / "eval", asked, right_in(0.5))).read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 6  # three scenes of two cameras
    assert text.count("<use ") > 6


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    asked = samples(tmp_path, 2)
    asked[0].images[0].write_bytes(b"no picture")
    asked[0].images[1].unlink()
    page = page_of(evaluation(tmp_path / "eval", asked, right_in(0.5)))
    told = " ".join(page.texts)
    assert all(str(path) in told for path in asked[0].images)
    assert any("cannot be read" in text for text in page.texts)


def test_tags_are_marked_on_their_cameras_picture(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    one = next(one for one in samples(tmp_path, 1) if one.topic == "objects")
    folder = evaluation(
        tmp_path / "eval", [one], lambda *_: "A van, <c1,CAM_FRONT_LEFT,0.5000,0.2500>, and <c2,CAM_BACK,0.5,0.5>."
    )
    (case,) = [block for block in rows_of(sheet_of(folder)) if isinstance(block, d.Case)]
    marks = {picture.camera: picture.marks for picture in case.pictures}
    assert marks["CAM_FRONT"] == (d.Mark("c1 of the reference", 0.1, 0.5, "reference"),)
    assert marks["CAM_FRONT_LEFT"] == (d.Mark("c1 of the model", 0.5, 0.25, "model"),)
    assert case.answers[0].verdict == "0 of 1 objects found, 2 named that are not there"


def test_a_model_that_writes_pixels_is_marked_at_the_same_places(tmp_path: Path) -> None:
    asked = [one for one in samples(tmp_path, 3) if one.topic == "objects"]
    folder = evaluation(tmp_path / "eval", asked, lambda *_: "A van, <c1,CAM_FRONT,800,450>.")
    (*_, case) = [block for block in rows_of(sheet_of(folder)) if isinstance(block, d.Case)]
    assert d.Mark("c1 of the model", 0.5, 0.5, "model") in case.pictures[1].marks
