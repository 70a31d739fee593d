"""Does an engine that drivekd did not build answer as this bundle does?

The engine's answers to the golden prompts (`drivekd export BUNDLE --kit edgellm` writes them as a job for it) are held against
the golden tokens. The engine ran freely, so behind its first differing token it continues another answer: all that follows counts
as not agreeing. A token whose two best logits lie within TIE_MARGIN is a coin toss between any two engines: it does not count,
and when an engine takes the other side of it, what follows in that answer does not either.

No engine is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from drivekd.errors import BundleError
from drivekd.processor import parse_tokenizer
from drivekd.runtime.answers.questions import fill_template
from drivekd.runtime.bundle.manifest import Manifest
from drivekd.runtime.bundle.reader import Bundle, read_bundle

from .golden import GOLDEN_FILE, load_golden
from .limits import MIN_AGREEMENT, TIE_MARGIN
from .outputs import EngineAnswer, read_outputs

HEADER = ["capability", "judged by", "tokens agree", "first difference", "expected", "found", "margin", ""]
MIN_COMPARED = 0.5  # of the golden tokens: an engine that left every answer at a tie was not judged
END = "end of the answer"


@dataclass(frozen=True)
class Difference:
    """The first token that differs. position: 0 = the answer's first. margin: of the golden run's two best logits there.

    found_id is None where the engine's answer ends or where it gave only text.
    """

    position: int
    expected_id: int
    expected_text: str
    found_id: int | None
    found_text: str
    margin: float


@dataclass(frozen=True)
class AnswerVerdict:
    """One capability. judged_by: "tokens" or "text". tokens_expected: up to and with the end of turn; ties not in compared."""

    capability: str
    judged_by: str
    tokens_expected: int
    tokens_compared: int
    tokens_agreeing: int
    difference: Difference | None


@dataclass(frozen=True)
class RefereeReport:
    """What the referee found. bundle: its digest. tokens_expected, tokens_compared, tokens_agreeing: of all answers."""

    bundle: str
    answers: tuple[AnswerVerdict, ...]

    @property
    def tokens_expected(self) -> int:
        return sum(answer.tokens_expected for answer in self.answers)

    @property
    def tokens_compared(self) -> int:
        return sum(answer.tokens_compared for answer in self.answers)

    @property
    def tokens_agreeing(self) -> int:
        return sum(answer.tokens_agreeing for answer in self.answers)

    @property
    def agreement(self) -> float:
        """Share of the compared tokens, 0 when none could be compared."""
        return self.tokens_agreeing / self.tokens_compared if self.tokens_compared else 0.0

    @property
    def passed(self) -> bool:
        """At least MIN_AGREEMENT of the compared tokens, and MIN_COMPARED of the expected ones were compared."""
        return self.agreement >= MIN_AGREEMENT and self.tokens_compared >= MIN_COMPARED * self.tokens_expected

    @property
    def verdict(self) -> str:
        """One sentence: pass or fail, how many tokens agree, and where the first difference is."""
        counts = f"{self.tokens_agreeing} of {self.tokens_compared} compared tokens agree ({self.agreement:.1%})"
        if self.passed:
            return f"passed: {counts}, at least {MIN_AGREEMENT:.0%} expected"
        first = next((answer for answer in self.answers if answer.difference is not None), None)
        if first is None:
            compared = f"only {self.tokens_compared} of {self.tokens_expected} golden tokens could be compared"
            return f"failed: {compared}, the rest are ties or lie behind one"
        where = f"first in {first.capability}, {_described(first.difference)}"
        return f"failed: {counts}, at least {MIN_AGREEMENT:.0%} expected; {where}"

    def rows(self) -> list[list[str]]:
        """A table under HEADER."""
        return [_row(answer) for answer in self.answers]

    def to_json(self) -> dict[str, Any]:
        totals = {"tokens_compared": self.tokens_compared, "tokens_agreeing": self.tokens_agreeing}
        return {**asdict(self), **totals, "agreement": self.agreement, "passed": self.passed}


def judge_outputs(
    bundle: Path, outputs: Path, *, expect_digest: str | None = None, public_key: Path | None = None
) -> RefereeReport:
    """Hold the answers in `outputs` (formats: engine_outputs) against the golden tokens of a verified bundle.

    Raises BundleError (changed, incomplete, no golden.npz), DataError naming file and place when the answers cannot be read.
    A failing engine is no exception: see RefereeReport.passed.
    """
    return judge(read_bundle(Path(bundle), expect_digest=expect_digest, public_key=public_key), Path(outputs))


def judge(bundle: Bundle, outputs: Path) -> RefereeReport:
    """The same for a bundle that was read already."""
    if GOLDEN_FILE not in bundle.files:
        raise BundleError(f"{bundle.path}: {GOLDEN_FILE} is missing, so there is nothing to judge by; export it again")
    golden = load_golden(bundle.files[GOLDEN_FILE], str(bundle.path))
    tokenizer = parse_tokenizer(bundle.files["tokenizer.json"], f"{bundle.path}: tokenizer.json")
    answers = read_outputs(outputs, golden_questions(bundle.manifest))
    end = bundle.manifest.generation.end_of_turn_id
    verdicts = []
    for row, (capability, answer) in enumerate(answers.items()):
        expected = until_end(golden["tokens"][:, row].tolist(), end)
        verdicts.append(_verdict(capability, expected, golden["margins"][: len(expected), row], answer, end, tokenizer))
    return RefereeReport(bundle.digest, tuple(verdicts))


def golden_questions(manifest: Manifest) -> dict[str, str]:
    """The literal question of each capability that the golden run asked: the bundle's, with its default variables."""
    return {name: fill_template(template, manifest.variables) for name, template in manifest.prompts.items()}


def until_end(tokens: Sequence[int], end_of_turn_id: int) -> list[int]:
    """Golden tokens up to and with the first end of turn: the golden run does not obey it, other engines stop there."""
    return list(tokens[: tokens.index(end_of_turn_id) + 1]) if end_of_turn_id in tokens else list(tokens)


def _verdict(
    capability: str, expected: list[int], margins: NDArray[np.float32], answer: EngineAnswer, end: int, tokenizer: Tokenizer
) -> AnswerVerdict:
    if answer.tokens is not None:
        place = _differing_token(expected, answer.tokens, end)
    else:
        place = _differing_text(expected, answer.text, end, tokenizer)
    clear = margins > TIE_MARGIN
    judged_by = "text" if answer.tokens is None else "tokens"
    if place is None:
        return AnswerVerdict(capability, judged_by, len(expected), int(clear.sum()), int(clear.sum()), None)
    agreeing = int(clear[:place].sum())
    if not clear[place]:
        return AnswerVerdict(capability, judged_by, len(expected), agreeing, agreeing, None)
    difference = _difference(expected, answer, place, float(margins[place]), tokenizer)
    return AnswerVerdict(capability, judged_by, len(expected), int(clear.sum()), agreeing, difference)


def _differing_token(expected: list[int], found: Sequence[int], end: int) -> int | None:
    """Position of the first differing token; what the engine says beyond the recorded tokens is not judged."""
    ended = list(found) if found and found[-1] == end else [*found, end]
    ended += [end] * (len(expected) - len(ended))
    return next((place for place, pair in enumerate(zip(expected, ended, strict=False)) if pair[0] != pair[1]), None)


def _differing_text(expected: list[int], found: str, end: int, tokenizer: Tokenizer) -> int | None:
    """The same by text. Engines strip white space at the ends of an answer, so it does not count."""
    found = found.strip()
    for place in range(len(expected)):
        said = _said(expected[: place + 1], tokenizer).strip()
        if not found.startswith(said):
            return place
    whole = _said(expected, tokenizer).strip()
    return len(expected) - 1 if expected[-1] == end and found != whole else None


def _difference(expected: list[int], answer: EngineAnswer, place: int, margin: float, tokenizer: Tokenizer) -> Difference:
    found_id = None
    if answer.tokens is None:
        before = len(_said(expected[:place], tokenizer).strip())
        found_text = answer.text.strip()[before:][:24] or END
    elif place < len(answer.tokens):
        found_id = answer.tokens[place]
        found_text = _token_text(found_id, tokenizer)
    else:
        found_text = END
    return Difference(place, expected[place], _token_text(expected[place], tokenizer), found_id, found_text, margin)


def _said(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """Text of tokens without special ones, and without the half of a character that a byte-level token may end in."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).rstrip("\ufffd")


def _token_text(token: int, tokenizer: Tokenizer) -> str:
    """A token in quotes; one that is part of a character only, as the tokenizer's file writes it."""
    piece = tokenizer.id_to_token(token)
    if piece is None:
        return "no such token"
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    return repr(piece if "\ufffd" in text else text)


def _row(answer: AnswerVerdict) -> list[str]:
    agree = f"{answer.tokens_agreeing} of {answer.tokens_compared}"
    ties = answer.tokens_expected - answer.tokens_compared
    agree += f", {ties} not compared" if ties else ""
    if answer.difference is None:
        return [answer.capability, answer.judged_by, agree, "none", "", "", "", "agrees"]
    difference = answer.difference
    expected, found = _token(difference.expected_id, difference.expected_text), _token(difference.found_id, difference.found_text)
    place = f"token {difference.position}"
    return [answer.capability, answer.judged_by, agree, place, expected, found, f"{difference.margin:.3g}", "DIFFERS"]


def _token(token: int | None, text: str) -> str:
    return text if token is None else f"{token} {text}"


def _described(difference: Difference | None) -> str:
    assert difference is not None
    expected, found = _token(difference.expected_id, difference.expected_text), _token(difference.found_id, difference.found_text)
    return f"token {difference.position}: expected {expected}, found {found} (margin {difference.margin:.3g})"
