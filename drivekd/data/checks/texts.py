"""What is wrong with the words of one question and answer: tags, cut answers, objects named twice, letters of options.

Each check yields (kind, "field: what was found and what would be right"). Tags are judged under a style of coordinates, which
only the whole file tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

from drivekd.data.answer_forms import options, several_letters
from drivekd.sample import Sample
from drivekd.tags import CoordinateStyle, find_tags, has_tag_form, malformed_tags

Finding: TypeAlias = tuple[str, str]

_STATED = re.compile(
    r"\W*(?:final(?:\s+answer)?\W+|(?:the\s+)?answer(?:\s+is)?\W+)?([A-H])(?:[.):,;}]|\s*$|\n)\s*(.*)", re.IGNORECASE
)
_LETTER = re.compile(r"(?:(?<=\s)|^)\(?([A-H])[.):]\s")
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_ENDS = ".!?)}]\"'”’>:;…。"
_RUN = re.compile(r"(<[^<>]+>)\s*(?:,|and|\s)*\s*\1")


def tag_findings(sample: Sample, style: CoordinateStyle) -> Iterator[Finding]:
    """Tags that are none, or lie outside the picture; an answer that ends within one."""
    expected = "0..1" if style == "normalized" else "pixels of 1600x900"
    for field, text in (("question", sample.question), ("answer", sample.answer or "")):
        if "<" not in text:
            continue
        for piece in malformed_tags(text, style):
            if field == "answer" and not piece.endswith(">") and text.rstrip().endswith(piece.rstrip()):
                yield "cut answer", f"answer: ends within the tag {piece!r}"
            elif has_tag_form(piece):
                yield "tag out of range", f"{field}: {piece!r} (expected a camera of ours and x, y in {expected})"
            else:
                yield "malformed tag", f"{field}: malformed tag {piece!r} (expected <cN,CAMERA,x,y> with x, y in {expected})"
        if style == "pixel" and any(tag.x * 1600 <= 1 and tag.y * 900 <= 1 for tag in find_tags(text, style)):
            yield "mixed coordinates", f"{field}: a tag between 0 and 1 in a file whose tags are pixels"


def answer_findings(sample: Sample, style: CoordinateStyle = "normalized") -> Iterator[Finding]:
    """Objects named twice, an answer that breaks off, letters that the question does not offer."""
    answer = sample.answer
    if answer is None:
        return
    if "<" in answer:
        yield from _object_findings(answer)
    if _breaks_off(answer):
        yield "cut answer", f"answer: breaks off: ...{answer[-40:]!r}"
    if sample.answer_form == "choice":
        yield from _choice_findings(sample.question, answer)


def _object_findings(answer: str) -> Iterator[Finding]:
    """One place under two names, one name at two places, one tag twice in a list. Naming an object again later is no fault."""
    places: dict[tuple[str, str, str], str] = {}
    named: dict[str, tuple[str, str, str]] = {}
    for object_id, *place in _TAGS.findall(answer):
        key = (place[0], place[1], place[2])
        if (other := places.setdefault(key, object_id)) != object_id:
            yield "duplicate object", f"answer: {other} and {object_id} are one place, {','.join(key)}"
            return
        if (before := named.setdefault(object_id, key)) != key:
            yield "duplicate object", f"answer: {object_id} is two places, {','.join(before)} and {','.join(key)}"
            return
    if match := _RUN.search(answer):
        yield "duplicate object", f"answer: {match[1]} stands twice in one list"


_TAGS = re.compile(r"<\s*(c\d+)\s*,\s*(\w+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*>")


def _breaks_off(answer: str) -> bool:
    """Whether an answer ends with a comma, or with a bracket open and no full stop."""
    end = answer.rstrip()[-1:]
    if end == ",":
        return True
    if not end.isalnum():
        return False
    return any(answer.count(opening) > answer.count(closing) for opening, closing in _CLOSING.items())


def is_unfinished(answer: str) -> bool:
    """Whether an answer of eight words or more ends without any mark of an end."""
    end = answer.rstrip()
    return bool(end) and end[-1] not in _ENDS and len(end.split()) >= 8


def _choice_findings(question: str, answer: str) -> Iterator[Finding]:
    offered = options(question)
    letters = {match[1] for match in _LETTER.finditer(question)}
    last = max(letters & set("ABCDEFGH"), default="A")
    gap = [letter for letter in "ABCDEFGH"[: "ABCDEFGH".index(last)] if letter not in letters]
    if gap and len(offered) < len(letters):
        yield "option letters", f"question: offers {', '.join(sorted(letters))} and no {', '.join(gap)}"
    if several_letters(question, answer):
        return
    stated = _STATED.match(answer)
    folded = {letter: _folded(text) for letter, text in offered.items()}
    if stated is None or not stated[1].isupper():
        if not any(text and text in _folded(answer) for text in folded.values()):
            yield "answer names no option", f"answer: {answer[:60]!r} is none of {', '.join(offered)}"
        return
    letter, text = stated[1], _folded(stated[2].partition("\n")[0])
    if letter not in offered:
        yield "option letters", f"answer: {letter} is none of the options {', '.join(offered)}"
        return
    others = [other for other, option in folded.items() if option and option == text and other != letter]
    if others and folded[letter] != text:
        yield "option letters", f"answer: {letter} with the words of option {others[0]}: {answer[:60]!r}"


def _folded(text: str) -> str:
    return " ".join(text.lower().replace("{", " ").replace("}", " ").split()).strip(" .")
