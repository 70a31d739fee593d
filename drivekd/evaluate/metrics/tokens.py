"""Words as COCO's caption metrics count them, without Java.

pycocoevalcap's own tokenizer starts Stanford's PTBTokenizer (a Java program) and drops its punctuation. These rules give the same
words for driving answers: lower case; "'s" and "n't" are words; numbers keep their signs and points, and a comma before digits
belongs to them (",497.5"); words glued by a hyphen, slash or full stop are one ("u-turn", "stop.then"); brackets are words
("-lrb-"), the other punctuation is dropped. Known differences: abbreviations keep no full stop ("e.g."), "cannot" stays one word.
"""

from __future__ import annotations

import re

NAME = "drivekd's PTB-like words (no Java)"
_PUNCTUATION = frozenset(["'", '"', "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", "’", "‘", "“", "”", "–", "—", "…"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_WORD = re.compile(
    r"(?:(?<![\w.])[-+])?\d*(?:[.,:]\d+)+(?!\w)"
    r"|(?<![\w.])[-+]\d+(?!\w)"
    r"|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b"
    r"|[^\W_]+(?=n['’]t\b)"
    r"|\w+(?:[-/]\w+|\.[^\W\d]\w*)*"
    r"|[^\w\s]"
)


def words(text: str) -> list[str]:
    """The words of a text.

    words("It's at <c1,CAM_BACK,1088.3,497.5>.")  ->  it 's at < c1 cam_back ,1088.3,497.5 >
    """
    return [_BRACKETS.get(word, word) for word in _WORD.findall(text.lower()) if word not in _PUNCTUATION]
