"""The named parts that an answer's own text states; nothing is guessed.

"Signal: red. Road: straight."                  -> {"signal": "red", "road": "straight"}
"C. Brake to a stop. Reason: the signal is red." -> {"choice": "C", "answer": "Brake to a stop", "reason": "the signal is red"}
"Yes. A van is near."                           -> {"answer": "yes"}
"""

from __future__ import annotations

import re

# A name opens the text or a sentence: one to four words and a colon. Dots inside coordinates are not followed by a space.
NAME = re.compile(r"(?:^|(?<=[.;]\s)|(?<=\n))([A-Z][A-Za-z]*(?: [A-Za-z]+){0,3}):\s+")
CHOICE = re.compile(r"\(?([A-H])(?:[.):]+(?:\s+|$)|$)")  # "C. ...", "(C) ...", "C"; not "A white van"
YES_NO = re.compile(r"(yes|no)\b", re.IGNORECASE)


def answer_fields(text: str) -> dict[str, str]:
    """Parts by lower-case name, each without its final full stop; {} when the text names none.

    A part runs to the next name. A name stated twice keeps both values, joined by "; ".
    """
    text = text.strip()
    names = list(NAME.finditer(text))
    starts = [*(match.start() for match in names), len(text)]
    fields = _head_fields(text[: starts[0]])
    for match, end in zip(names, starts[1:], strict=True):
        name, value = match[1].lower(), _trimmed(text[match.end() : end])
        fields[name] = f"{fields[name]}; {value}" if name in fields else value
    return fields


def _head_fields(head: str) -> dict[str, str]:
    """Of the text before the first name: an option letter with its words, or yes / no."""
    fields: dict[str, str] = {}
    if choice := CHOICE.match(head):
        fields["choice"] = choice[1]
        if words := _trimmed(head[choice.end() :]):
            fields["answer"] = words
    elif yes_no := YES_NO.match(head):
        fields["answer"] = yes_no[1].lower()
    return fields


def _trimmed(value: str) -> str:
    return value.strip().removesuffix(".").rstrip()
