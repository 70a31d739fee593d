"""The one grammar of "Name: value" texts: what the car shows as an answer's fields, and what an evaluation looks for.

    part    opening name ":" value
    opening the start of a text, of a line or of a sentence (behind "." or ";" and a blank), perhaps with a bullet: "-", "*", "**"
    name    a capital, then letters, "&" and "-": one to four words, in all at least two letters, perhaps bold ("**Final**:")
    value   all up to the next part; that of a heading with nothing but bullets behind it is these, and each of them is a part too

A lone "-" is no word of a name ("Yes - Reason: ..." names nothing), and an address is none ("Http://..."). Five words and a colon
are a sentence that goes on, "B:" is an option's letter, and digits have no names: "At 12:30".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_OPENING = r"(?:^|(?<=[.;]\s))[ \t\-*]*"
_LETTER = r"[A-Za-z&\-]"
_PART = re.compile(
    rf"{_OPENING}(?![A-Z]\**\s*:)([A-Z]{_LETTER}*(?: [A-Za-z&]{_LETTER}*){{0,3}})\**\s*:(?!//)\**\s*", re.MULTILINE
)


def named_parts(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(what stands before the first part, then (name, value) of each part in order, as written); a cut part's value may be "".

    named_parts("B. Stop. Reason: it is red.")  ->  ("B. Stop. ", (("Reason", "it is red."),))
    """
    found = list(_PART.finditer(text))
    starts = [*(match.start() for match in found), len(text)]
    ends = (starts[_next_part(text, found, number)] for number in range(len(found)))
    return text[: starts[0]], tuple((match[1], text[match.end() : end]) for match, end in zip(found, ends, strict=True))


def _next_part(text: str, found: Sequence[re.Match[str]], number: int) -> int:
    """Which part ends the value of that one."""
    behind = number + 1
    is_heading = behind < len(found) and not _has_bullet(found[number]) and not text[found[number].end() : found[behind].start()]
    while is_heading and behind < len(found) and _has_bullet(found[behind]):
        behind += 1
    return behind


def _has_bullet(part: re.Match[str]) -> bool:
    return re.match(r"\s*(?:-|\*(?!\*))", part[0]) is not None
