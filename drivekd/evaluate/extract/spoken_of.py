"""Of whom, of when and of what a word in an answer is said: another road user's doing, the past and a bus stop choose nothing."""

from __future__ import annotations

import re

_ENDS_SOMETHING = re.compile(r"\b(?:stop(?:s|ped)?|ceas(?:e|es|ed)|quits?)\s+$")  # "stop turning left" does not turn left
_NOUNS_STOP = re.compile(r"\b(?:bus|tram|taxi|coach)\s+$")
_CEASING = re.compile(r"\s+(?!moving|driving|going)\w+ing\b")
_WAS = re.compile(r"\b(?:was|were|had)\b[^.!;,:]*$")
_LONG_AGO = re.compile(  # not of a reason, or of what it is compared with
    r"(?:(?!\b(?:because|since|as|that|which|where|and|but)\b)[^.!;,:])*?"
    r"\b(?:before|earlier|previously|ago|at first|in the past)\s*(?:[.,;!]|$)"
)
_WHERE = (
    r"(?:ahead|in\s+front|behind|opposite|beside\s+\w+|next\s+to\s+\w+"
    r"|(?:in|on|at|to)\s+the\s+(?:\w+\s+)?(?:left|right|lane|front|back))"
)
_SURELY_ANOTHER = (
    r"(?:vans?|trucks?|bus(?:es)?|suvs?|taxis?|trams?|motorcycl\w+|bicycles?|cyclists?|pedestrians?|child(?:ren)?|persons?"
    r"|m[ae]n|wom[ae]n|dogs?)"
)
_AUXILIARY = r"(?:will|would|is|are|was|were|may|might|can|could|should|must|has|have|does|seems?|wants?|starts?|begins?)"
# "the car" may be the ego vehicle: another one is told by its article, an adjective, or where it is
_ANOTHER = (
    rf"(?:an?|another|some|that|this|these|those|the\s+other)\s+(?:\w+\s+){{0,2}}?(?:cars?|vehicles?|{_SURELY_ANOTHER})"
    rf"|the\s+(?:\w+\s+){{0,2}}?{_SURELY_ANOTHER}"
    r"|the\s+(?!ego|own|self|autonomous)\w+\s+(?:cars?|vehicles?)"
    rf"|(?:the\s+)?(?:cars?|vehicles?)(?=\s+{_WHERE}\b)"
)
_SUBJECT = re.compile(rf"\W*(?:{_ANOTHER})(?:\s+{_WHERE})?(?:\s+{_AUXILIARY}(?:\s+\S+){{0,6}})?\W*")
_CONTINUES = re.compile(rf"\W*{_AUXILIARY}\b")
_CLAUSE = re.compile(
    rf"[,;:()]|\b(?:so|therefore|thus|hence|because|since|but|then|it|ego|you|we|i)\b|\band\b(?!\s+{_AUXILIARY}\b)"
)
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_ASKS_THE_EGO = re.compile(
    rf"\b(?:should|must|will|can|could|would)\s+(?:the\s+)?(?:ego|own|self-driving|autonomous|you|we|i|(?:car|vehicle)(?!\s+{_WHERE})|driver)\b"
)


def is_of_the_past(before: str, behind: str) -> bool:
    """Whether what stands between the two was so and is no longer: "it was red before"."""
    return _WAS.search(before) is not None and _LONG_AGO.match(behind) is not None


def is_no_stop(option: str, before: str, behind: str) -> bool:
    """Whether "stop" is a place or an end of something else, or what is ended: "the bus stop", "stop turning left"."""
    if option != "stop":
        return re.match(r"\w+ing\b", option) is not None and _ENDS_SOMETHING.search(before) is not None
    is_place = _NOUNS_STOP.search(before) or (before.endswith("the ") and re.match(r"\s+(?:is|was|lies)\b", behind))
    return bool(is_place) or _CEASING.match(behind) is not None


def asks_what_to_do(stem: str) -> bool:
    """Whether a question is about what the ego vehicle should do, not about where others are relative to it."""
    about_another = re.search(rf"<c\d|{_SURELY_ANOTHER}\b|\b(?:cars?|vehicles?)\s+{_WHERE}\b", stem)
    return _ASKS_THE_EGO.search(stem) is not None or (re.search(r"\bactions?\b", stem) is not None and not about_another)


def is_of_another(before: str) -> bool:
    """Whether another road user is the subject of what leads to an option: "a car ahead will "."""
    sentence = _SENTENCE.split(before)[-1]
    clause = _CLAUSE.split(sentence)[-1]
    if _CONTINUES.match(clause):  # "the car ahead, a red one, will ": of the first part's subject
        clause = _CLAUSE.split(sentence)[0]
    return _SUBJECT.fullmatch(clause) is not None
