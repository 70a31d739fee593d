"""What the true answer of a record states. A label begins with its answer and may explain it: "B, Explanation: ...".

So a leading letter counts whatever the explanation says of other letters; several leading letters ("A, C") are no choice label.
"""

from __future__ import annotations

import re
import unicodedata

from drivekd.evaluate.extract.letters import choice
from drivekd.evaluate.extract.yes_or_no import yes_no

_LETTER = re.compile(r"\s*\(?([A-H])(?:\)?[).:,;]|\)?\s*$|\)?\s*\n)")
_ANOTHER = re.compile(r"\s*(?:and|or|&|/|\+)?\s*\(?[A-H](?:\)?[).:,;&/]|\)?\s*$|\s+(?:and|or)\b)")
_YES_OR_NO = re.compile(r"\W*(yes|no)\s*(?:[.,;:!]|$)(?!\s*(?:and\s+|or\s+)?(?:yes|no)\b)", re.IGNORECASE)


def label_letter(answer: str, question: str) -> str | None:
    """The letter of a choice question's true answer; None when it states none, or several."""
    answer = unicodedata.normalize("NFKC", answer)
    leading = _LETTER.match(answer)
    if leading is None or _ANOTHER.match(answer, leading.end()):
        return choice(answer, question)
    return leading[1]


def label_yes_no(answer: str) -> str | None:
    """ "yes" or "no" of a yes/no question's true answer, or None."""
    leading = _YES_OR_NO.match(unicodedata.normalize("NFKC", answer))
    return leading[1].lower() if leading else yes_no(answer)
