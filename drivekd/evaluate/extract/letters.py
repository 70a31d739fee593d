"""Which option a text chooses, by the letters that it states.

A letter is stated when it is marked ("Final: B.", "the answer is B", "option d", "B is correct"), leads the text ("B. Turn
left"), concludes it ("..., so B."), or has a line of its own. All that is stated must be one offered letter, neither denied nor
doubted; two different ones are no answer, whatever stands between them. A capital A before a word is the article. Lower-case
letters count behind a marker or with a bracket alone. Where none is stated, the words of exactly one option decide
(option_texts.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from drivekd.data.answer_forms import options
from drivekd.evaluate.extract.option_texts import begins_with_other_option, option_by_text, without_quotes
from drivekd.evaluate.extract.wording import WINDOW, is_doubted, json_answers, plain
from drivekd.evaluate.extract.yes_or_no import yes_no

_NOT_IN_WORD = r"(?![\w'’])"
_VERB = r"\s+(?i:is|are|was|because|since|as|and|or|which|would|so|the\s+answer|answer|option|choice|final)\b"
_ENDS = rf"(?=\s*[).:,;!?/&+]|\s*$|\s*\n|{_VERB})"
# Behind a letter: a delimiter, the end, or (for a capital that is not the article A) a blank.
_LETTER = rf"(?:([A-Ha-h]){_ENDS}|([B-H])(?=\s)){_NOT_IN_WORD}"
_IS = r"\s*(?i:is|was|are|would\s+be)?\s*:?\s*(?i:not\s+|either\s+|both\s+)?(?i:(?:option|choice|letter)\s+)?\(?"
_MARKED = (
    re.compile(r"(?<!\w)(?i:final(?:\s+(?:answer|choice|decision))?)(?!\w)" + _IS + _LETTER),
    re.compile(r"(?<!\w)(?i:answers?|(?:options?|choices?)(?=\s*(?:is\b|are\b|:)))(?!\w)" + _IS + _LETTER),
    re.compile(r"(?<!\w)(?i:options?|choices?|letter)\s*\(?" + _LETTER),
    re.compile(
        r"(?<![\w'’])()(?:([A-H])(?=\)?\s+is\s+(?:the\s+|also\s+)?(?:correct|right|best|true|answer|wrong|incorrect|false)\b))"
    ),
)
_PERHAPS_A = re.compile(
    r"(?<!\w)(?i:final|answer|option|choice)(?!\w)" + _IS + r"(A)(?=\s+[A-Z])"
)  # or an article: it decides nothing
_CONCLUDED = re.compile(
    r"(?<!\w)(?i:so|therefore|thus|hence|(?:i\s+)?(?:choose|select|pick|chose)|go\s+with|i(?:['’]d|\s+would)\s+say|i\s+think|=>|→)"
    r"\s*[,:]?\s*(?i:it\s+is\s+|it['’]s\s+)?\(?([A-H])\)?\s*(?=[.;!]\s|[.;!]?\s*$|\n)"
)
_LEADING = re.compile(r"\s*(?:\(?([A-H])(?:\)?[).:,;!]|\)?\s*$|\)?\s*\n|\s+[-–—]\s|\s+(?:because|since)\b)|\(?([a-h])\))")
_LISTED = re.compile(r"(?:^|(?<=[.;:!?)\n]))[ \t]*[-•]?[ \t]*\(?([A-H])[.):](?=\s|$)", re.MULTILINE)
_OWN_LINE = re.compile(r"^[ \t]*\(?([A-H])\)?[ \t]*[.!]?[ \t]*$", re.MULTILINE)
_AND = r"\s*(?:,\s*(?:and|or)?|/|&|\+|\band\b|\bor\b|\bnor\b|\bvs\.?|\bund\b|\boder\b)\s*(?:(?i:option|choice)\s+)?\(?"
_NAMED = re.compile(rf"(?<![\w'’/])(?:([B-H]){_NOT_IN_WORD}|(A)(?=\)){_NOT_IN_WORD}|(A){_ENDS}{_NOT_IN_WORD})")
_SEVERAL_MARKED = re.compile(
    rf"(?<!\w)(?i:options?|choices?|answers?(?:\s+(?:is|are))?)\s*:?\s*\(?([A-Ha-h])\)?{_AND}([A-Ha-h])(?![\w'’])"
)
_SEVERAL = re.compile(
    rf"(?<![\w'’])([A-H])\)?{_AND}([A-H]){_NOT_IN_WORD}(?!\s+(?!is\b|are\b|and\b|or\b|apply\b|would\b|seem)[a-z])"
)
_MENTION = re.compile(r"(?i:options?|choices?|letter|answers?)\s*\(?[A-Ha-h]")  # no "is", no colon
_SPEAKS_FOR_IT = re.compile(
    r"\)?\s+(?:(?:because|since|as|so|which|and|or|for|due|here|therefore|if|unless)\b|(?:is|are|was|would\s+be|(?:must|should)\s+be"
    r"|(?:seems?|looks?|appears?)(?:\s+to\s+be)?)\s+(?:\w+ly\s+)?(?:(?:the|also|my|a|an)\s+)*(?:most|more|best|better|correct|right|true"
    r"|answers?|safe\w*|appropriate|suitable|likely|only|valid|accurate|one|choice|final|possible|reasonable)\b)"
)
_REFUSED = re.compile(r"\)?\s*[:\-–—]?\s*(?i:no)\s*(?:(?i:way)\b|[.,;!]|$|\s\(?[A-H]\b)")
_ANOTHER_BEHIND = re.compile(r"\)?\s*[.):,;]\s*\(?([A-H])\s*(?:[.):,;]|$)")


def choice(text: str, question: str) -> str | None:
    """The letter of the option that `text` chooses out of those that `question` offers, or None.

    >>> which_way = "Which way? Options: A. Left. B. Right."
    >>> choice("The answer is B, because a car turns.", which_way)
    'B'
    >>> choice("It turns left.", which_way)
    'A'
    >>> choice("A or B", which_way) is None
    True
    >>> choice("Option A is wrong", which_way) is None
    True
    """
    offered = options(question)
    answers = json_answers(text)
    if answers is not None:
        return _only([_choice(answer, question, offered) for answer in answers])
    return _choice(text, question, offered)


def _only(letters: list[str | None]) -> str | None:
    return letters[0] if len(set(letters)) == 1 else None


def _choice(text: str, question: str, offered: Mapping[str, str]) -> str | None:
    words = without_quotes(plain(text), question, offered)
    if _names_several(words, offered):
        return None
    marked = list(_marked(words))
    inside = {position for _, start, end in marked for position in range(start, end)}
    listed = {match[1] for match in _LISTED.finditer(words) if match.start(1) not in inside}
    stated = marked if marked and len(listed) > 1 else marked + _unmarked(words, offered, denied=not marked)
    letters = {letter for letter, _, _ in stated}
    if not letters:
        return None if listed else _by_words(words, question, offered)
    if len(listed) < 2 or not marked:  # an enumeration before "Final: B" goes through the options, it states none
        letters |= _named(words, offered)
    if len(letters) > 1 or any(
        is_doubted(words, start, end) or _only_mentions(words, start, end, offered) for _, start, end in stated
    ):
        return None
    letter = letters.pop()
    if offered and letter not in offered:
        return None
    return None if any(begins_with_other_option(words[end : end + WINDOW], letter, offered) for _, _, end in stated) else letter


def _marked(words: str) -> Iterator[tuple[str, int, int]]:
    """(letter, start of its marker, its end)."""
    for marker in _MARKED:
        for match in marker.finditer(words):
            group = 1 if match[1] else 2
            denied = re.search(r"(?i)\bnot\s", match[0])  # "the answer is not B": the letter begins behind the denial
            yield match[group].upper(), match.start(group) if denied else match.start(), match.end(group)


def _only_mentions(words: str, start: int, end: int, offered: Mapping[str, str]) -> bool:
    """Whether the letter before `end` is spoken of, not for: "Option B fails", "B - no way", "Answer: A. B. C." """
    letter, behind = words[end - 1].upper(), words[end : end + WINDOW]
    option = offered.get(letter, "").lower()
    another = _ANOTHER_BEHIND.match(behind)
    if (another and another[1] != letter) or (_REFUSED.match(behind) and not re.match(r"no\b", option)):
        return True
    if _MENTION.fullmatch(words, start, end) is None or not re.match(r"\)?\s+[a-z]", behind):
        return False
    return not _begins_with(behind.lstrip(") "), option) and _SPEAKS_FOR_IT.match(behind) is None


def _begins_with(words: str, option: str) -> bool:
    """Whether an option's words come first: not "car" in "cargo bike"."""
    return bool(option) and re.match(rf"{re.escape(option)}(?![\w-])", words, re.IGNORECASE) is not None


def _unmarked(words: str, offered: Mapping[str, str], *, denied: bool) -> list[tuple[str, int, int]]:
    """(letter, start, end) of letters that lead, conclude or stand alone on a line. denied: those that are taken back, too."""
    found = []
    leading = _LEADING.match(words)
    if leading:
        group = 1 if leading[1] else 2
        found.append((leading[group].upper(), leading.start(group), leading.end(group)))
    elif words[:1] in offered and words[1:2] == " " and _begins_with(words[2:], offered[words[0]]):
        found.append((words[0], 0, 1))  # "B Turn left"
    for pattern in (_CONCLUDED, _OWN_LINE):
        found += [(match[1], match.start(), match.end(1)) for match in pattern.finditer(words)]
    return [(letter, start, end) for letter, start, end in found if denied or not is_doubted(words, start, end)]


def _named(words: str, offered: Mapping[str, str]) -> set[str]:
    """Offered letters that stand as words of their own anywhere and are not denied there: two of them state none."""
    found = {"A"} if _PERHAPS_A.search(words) else set()
    for match in _NAMED.finditer(words):
        letter = match[match.lastindex or 0]
        if letter not in found and letter in (offered or "ABCDEFGH") and not is_doubted(words, match.start(), match.end()):
            found.add(letter)
    return found


def _names_several(words: str, offered: Mapping[str, str]) -> bool:
    """A list of letters, such as: A, B and C are possible; A or B; A/C; options a and b."""
    lists = (match for pattern in (_SEVERAL, _SEVERAL_MARKED) for match in pattern.finditer(words))
    pairs = ({match[1].upper(), match[2].upper()} for match in lists)
    return any(len(pair) == 2 and pair <= (offered.keys() or set("ABCDEFGH")) for pair in pairs)


def _by_words(words: str, question: str, offered: Mapping[str, str]) -> str | None:
    by_answer = {text.lower(): letter for letter, text in offered.items()}
    if {"yes", "no"} <= by_answer.keys():  # "There is no red light" says no such thing as "No."
        said = yes_no(words)
        if said is not None:
            return by_answer[said]
        offered = {letter: text for letter, text in offered.items() if text.lower() not in ("yes", "no")}
    return option_by_text(words, question, offered)
