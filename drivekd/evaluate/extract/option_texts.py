"""Which option a text chooses by its words, where it states no letter."""

from __future__ import annotations

import re
from collections.abc import Mapping

from drivekd.evaluate.extract.actions import actions
from drivekd.evaluate.extract.spoken_of import asks_what_to_do, is_no_stop, is_of_another, is_of_the_past
from drivekd.evaluate.extract.wording import WINDOW, is_denied_behind, is_doubted, plain

_NEXT_WORD = re.compile(r"\s+([a-z]+)\b")
_GOES_ON = re.compile(  # a word that goes on with the sentence; another one behind "stop" or "red" makes a thing of it
    r".*(?:ed|ing|ly)|at|for|and|before|behind|because|since|as|to|into|in|on|onto|now|here|there|until|while|when|if|unless|is|are|was"
    r"|were|be|has|have|or|but|with|within|by|then|so|near|next|from|the|a|an|this|that|its|due|after|again|first|too|also|which"
    r"|who|where|forward|ahead|straight|left|right|back|away|down|up|out|not|nor|no|than|should|must|will|would|can|could|may|might"
)


def option_by_text(words: str, question: str, offered: Mapping[str, str]) -> str | None:
    """The letter of the only option whose words `words` state, longest first: "slightly left" is not also "left".

    Doubt about any option leaves it open; a denied option is none that is chosen. Words that the question itself uses outside its
    options decide only as a sentence of their own: to repeat the question is no answer. Where the question asks about the ego
    vehicle, what another one does decides nothing.
    """
    rest = " ".join(words.lower().split())
    stem = _stem(question)
    about_ego = asks_what_to_do(stem)
    named: set[str] = set()
    denied: set[str] = set()
    for letter, option in sorted(offered.items(), key=lambda item: -len(item[1])):
        option = " ".join(plain(option).lower().split())
        if not option:
            continue
        is_own_action = about_ego and bool(actions(option))
        pattern = re.compile(rf"(?<![\w-]){re.escape(option)}(?![\w-]|['’]s\b)")
        if pattern.search(stem):
            pattern = re.compile(rf"(?:^|(?<=[.!?:;]\s)){re.escape(option)}(?=\s*(?:[.!;]|$))")
        said = 0  # up to where the option stood before: a model that repeats itself begins anew behind it
        for match in pattern.finditer(rest):
            before, behind = rest[max(said, match.start() - WINDOW) : match.start()], rest[match.end() : match.end() + WINDOW]
            said = match.end()
            if (" " not in option and _describes(behind, stem)) or is_no_stop(option, before, behind):
                continue
            if is_of_the_past(before, behind) or (is_own_action and is_of_another(before)):
                continue
            refused = is_doubted(rest, match.start(), match.end()) or is_denied_behind(rest, match.end())
            (denied if refused else named).add(letter)
        rest = pattern.sub(" | ", rest)
    return named.pop() if len(named) == 1 and not named & denied else None


def _describes(behind: str, stem: str) -> bool:
    """Whether a word is said of the one behind it, which the question does not ask about: "the red car", "a stop sign"."""
    following = _NEXT_WORD.match(behind)
    return following is not None and _GOES_ON.fullmatch(following[1]) is None and not re.search(rf"\b{following[1]}\b", stem)


def without_quotes(words: str, question: str, offered: Mapping[str, str]) -> str:
    """`words` without the question and without its list of options, where they are repeated word for word."""
    quoted = [plain(question)]
    if offered:
        first = plain(next(iter(offered.values())))
        listing = re.search(rf"\(?A[.):]\s+{re.escape(first)}", plain(question))
        if listing:
            quoted.append(plain(question)[listing.start() :])
            quoted.append(plain(question)[: listing.start()].strip())
    for piece in quoted:
        for spelling in (piece, piece.removesuffix(".")):
            if len(spelling) > 3:
                words = words.replace(spelling, "\n")
    return re.sub(r"^[ \t]*(?:question|options)[ \t]*:?[ \t]*$", "", words, flags=re.IGNORECASE | re.MULTILINE).lstrip(" .\n\t")


def begins_with_other_option(rest: str, letter: str, offered: Mapping[str, str]) -> bool:
    """Whether the words directly behind `letter` are those of another option: "A. Turn left" where B is "Turn left"."""
    said = " ".join(rest.lstrip(" ).:,;-–—\n").lower().split())
    fitting = {
        key
        for key, text in offered.items()
        if text and re.match(rf"{re.escape(' '.join(plain(text).lower().split()))}(?!\w)", said)
    }
    return bool(fitting) and letter not in fitting


def _stem(question: str) -> str:
    """The question without its options, lower case."""
    listing = re.search(r"(?:(?<=\s)|^)\(?A[.):]\s", question)
    return " ".join(plain(question[: listing.start()] if listing else question).lower().split())
