"""Plain words out of a generated text, and which of them deny, doubt or ask instead of stating.

`plain` makes one spelling of what looks alike and means the same: full-width and circled letters (Unicode NFKC), Markdown,
quotes, \\boxed{...} and <answer>...</answer>. A Cyrillic or Greek letter that only looks like a Latin one stays what it is.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator

_MARKUP = re.compile(r"[*_`{}\[\]\"“”„«»]|^[ \t]*(?:#+|>)[ \t]*", re.MULTILINE)
_BOXED = re.compile(r"\\boxed\s*\{(?:\\text\s*\{)?([^{}]*)\}*|<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"^\s*```\w*|```\s*$")
_BOLD_LETTER = re.compile(r"(?:\*\*|__)\s*\(?([A-H])[).]?\s*(?:\*\*|__)")
_BLANKS = re.compile(r"\s+")
_ANSWER_KEYS = frozenset({"answer", "final", "final_answer", "final answer", "choice", "option", "selected"})

WINDOW = (
    300  # characters on either side in which a sentence's words are looked for: a model that repeats itself costs linear time
)

_CLAUSE_START = re.compile(
    r"[,;:.!?\n()]|\b(?:so|therefore|thus|hence|because|since|but|then|and)\b", re.IGNORECASE
)  # what stands before one of these does not deny what stands behind it
_SENTENCE_START = re.compile(r"[.!?]\s|\n")
_DENIAL = re.compile(
    r"\b(?:not|no|never|neither|nor|without|except|cannot|unlikely|hardly|than|instead)\b|n['’]t\b|\brul\w+ out\b|\bexclud\w+"
    r"|\bdoubt\w*|\b(?:wrong|incorrect)\b|\b(?:used to|previously|formerly|far from)\b",
    re.IGNORECASE,
)
_SET_ASIDE = re.compile(  # ends right before what it is said of
    r"\b(?:avoid|eliminat|reject|discard|dismiss|discount|ignor|skip|unlike|anything\s+but|consider|look\w*\s+at|compar\w+\s+(?:with|to)"
    r"|contrary\s+to|opposed\s+to|against)\w*\s+(?:the\s+)?(?:(?:options?|choices?|answers?|letter)\s*)?\(?$",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:might|maybe|perhaps|possibly|may|could|either|unsure|unclear|unknown|between)\b|\bnot sure\b", re.IGNORECASE
)
_CONDITION = re.compile(r"\b(?:if|whether|unless)\b", re.IGNORECASE)  # holds for its whole sentence
_REFUTED = re.compile(
    r"[^.!;\n]*?(?:\b(?:is|are|was|be|seems?|looks?)\s+|[:,\-–—]\s*)"
    r"(?:(?:definitely|clearly|certainly|probably|also|simply)\s+)?"
    r"(?:wrong|incorrect|false|impossible|unlikely|invalid|excluded|ruled\s+out"
    r"|not\s+(?:correct|right|true|possible|likely|valid|applicable|it|the|an?\s+(?:option|answer)))\b"
    r"|[^.!;\n]*?\b(?:isn|aren|wasn|can|couldn)['’]?t\s+(?:be\s+)?(?:it|correct|right|true|possible|likely|valid|the)\b"
    r"|\s*(?:is|are)\s+not\s*(?:[.,;!]|$)",
    re.IGNORECASE,
)
_ON_CONDITION = re.compile(r"\)?,?\s+(?:but\s+)?(?:only\s+)?(?:if|unless)\b", re.IGNORECASE)
_REASON = re.compile(r"\b(?:because|since|as)\b", re.IGNORECASE)


def plain(text: str) -> str:
    """`text` without markup, in NFKC; every run of blanks is one, a line break where it holds one."""
    text = unicodedata.normalize("NFKC", text)
    text = _BOXED.sub(lambda match: f"\nAnswer: {match[1] if match[1] is not None else match[2]}\n", text)
    text = _BOLD_LETTER.sub(r"(\1)", text)
    return _BLANKS.sub(lambda blank: "\n" if "\n" in blank[0] else " ", _MARKUP.sub("", text)).strip()


def json_answers(text: str) -> list[str] | None:
    """The values under "answer", "choice", "final" ... of a text that is one JSON object, at any depth; None for any other text.

    A key that is given twice gives two values: json keeps the last alone and would hide the contradiction.
    """
    try:
        pairs = json.loads(_FENCE.sub("", text), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    return list(_answers(pairs)) if isinstance(pairs, _Pairs) else None


class _Pairs(list[tuple[str, object]]):
    """The (key, value) pairs of an object, doubles included."""


def _answers(value: object) -> Iterator[str]:
    if not isinstance(value, _Pairs):
        return
    for key, inner in value:
        if key.strip().lower().replace("-", "_") in _ANSWER_KEYS:
            parts = inner if isinstance(inner, list) and not isinstance(inner, _Pairs) else [inner]
            yield from (part if isinstance(part, str) else "" for part in parts)
        yield from _answers(inner)


def is_doubted(text: str, start: int, end: int) -> bool:
    """Whether what stands in text[start:end] is denied, doubted, conditional or asked there, rather than stated."""
    before = text[max(0, start - WINDOW) : start]
    clause = before[_last(_CLAUSE_START, before) :]
    sentence = before[_last(_SENTENCE_START, before) :]
    said = _DENIAL.search(clause) or _DOUBT.search(clause) or _CONDITION.search(sentence) or _SET_ASIDE.search(before)
    return said is not None or is_refuted(text, end)


def is_denied_behind(text: str, end: int) -> bool:
    """Whether the clause that goes on behind text[:end] denies: "the middle lane is not free"."""
    behind = text[end : end + WINDOW]
    border = _CLAUSE_START.search(behind)
    return _DENIAL.search(behind, 0, border.start() if border else len(behind)) is not None


def is_refuted(text: str, end: int) -> bool:
    """Whether the words behind text[:end], up to the sentence's end or its reason, take back what stands before them or make it
    conditional."""
    behind = text[end : end + WINDOW]
    if has_condition(behind):
        return True
    rest = re.split(r"(?<=[.!;\n])", behind.lstrip(").:, "), maxsplit=1)[0]
    claim = _REASON.split(rest, maxsplit=1)[0]
    return behind.lstrip(") .").startswith("?") or _REFUTED.match(f" {claim}") is not None or claim.rstrip().endswith("?")


def has_condition(behind: str) -> bool:
    """Whether what goes on with these words is hung on a condition: " if it rains"."""
    return _ON_CONDITION.match(behind) is not None


def _last(border: re.Pattern[str], text: str) -> int:
    """Where the last border in `text` ends."""
    ends = [match.end() for match in border.finditer(text)]
    return ends[-1] if ends else 0
