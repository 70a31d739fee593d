"""NuScenes-QA: an answer is right when it is the true one, by type of question and hop (Qian et al. 2024, arXiv 2305.14836).

Answers there are a class ("yes", "2", "moving"); a generated text is compared without its case, its outer blanks and closing full
stops, and is otherwise taken as it is: "two" is not "2", and a sentence around the answer is wrong.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .intervals import Interval, estimate
from .measures import mean_of


@dataclass(frozen=True)
class Exact:
    """One answered question. type: template_type; hop: how many steps it takes, None = not told."""

    type: str
    hop: int | None
    correct: bool
    cluster: str


@dataclass(frozen=True)
class ExactRow:
    """Accuracy of a type ("" = all) and hop (None = all), with its 95 % interval by scene."""

    type: str
    hop: int | None
    n: int
    accuracy: float
    interval: Interval


def is_exact(text: str, truth: str) -> bool:
    """Whether a text is the true answer; an empty one is not."""
    return bool(_plain(text)) and _plain(text) == _plain(truth)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).rstrip(" .")


def exact_rows(answers: Sequence[Exact], seed: int = 0) -> list[ExactRow]:
    """All, then by hop, then each type, and each type by hop."""
    return [_row(kind, hop, members, seed) for kind, hop, members in _groups(answers) if members]


def _groups(answers: Sequence[Exact]) -> Iterator[tuple[str, int | None, list[Exact]]]:
    hops = sorted({one.hop for one in answers if one.hop is not None})
    for kind in ["", *sorted({one.type for one in answers} - {""})]:
        of_kind = [one for one in answers if kind in ("", one.type)]
        yield kind, None, of_kind
        for hop in hops:
            yield kind, hop, [one for one in of_kind if one.hop == hop]


def _row(kind: str, hop: int | None, members: Sequence[Exact], seed: int) -> ExactRow:
    found = estimate(mean_of([one.correct for one in members]), [one.cluster for one in members], seed=seed)
    return ExactRow(kind, hop, found.n, found.value, found.interval)
