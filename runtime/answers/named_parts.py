"""The one grammar of "Name: value" texts: what the car shows as an answer's fields, and what an evaluation looks for.

    part    opening name ":" value
    opening the start of a text, of a line or of a sentence (behind "." or ";" and a blank), perhaps with a bullet: "-", "*", "**"
    name    a capital, then letters, "&" and "-": one to four words, in all at least two letters, perhaps bold ("**Final**:")
    value   all up to the next part

Five words and a colon are a sentence that goes on, "B:" is an option's letter, and digits have no names: "At 12:30".
"""

from __future__ import annotations

import re

_OPENING = r"(?:^|(?<=[.;]\s))[ \t\-*]*"
_WORD = r"[A-Za-z&\-]"
_PART = re.compile(rf"{_OPENING}(?![A-Z]\**\s*:)([A-Z]{_WORD}*(?: {_WORD}+){{0,3}})\**\s*:\**\s*", re.MULTILINE)


def named_parts(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(what stands before the first part, then (name, value) of each part in order, as written); a cut part's value may be "".

    named_parts("B. Stop. Reason: it is red.")  ->  ("B. Stop. ", (("Reason", "it is red."),))
    """
    found = list(_PART.finditer(text))
    starts = [*(match.start() for match in found), len(text)]
    values = (text[match.end() : end] for match, end in zip(found, starts[1:], strict=True))
    return text[: starts[0]], tuple((match[1], value) for match, value in zip(found, values, strict=True))
