"""Accuracy of choice and yes/no questions, and what needs no model to reach: the majority's and a blind guess's.

An `Item` is one scorable question: what may be answered (`classes`), and what is right (`answer`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .measures import Measure, counted, mean_of


@dataclass(frozen=True)
class Item:
    """topic: group within which a majority class is taken. classes: letter -> option text, or yes -> yes, no -> no.

    answer: one of the classes' keys. cluster: what is drawn together when resampling, a scene.
    """

    topic: str
    classes: Mapping[str, str]
    answer: str
    cluster: str

    def text_of(self, key: str) -> str:
        """A class by its words, since a letter means another thing in every question."""
        return self.classes[key].lower()


@dataclass(frozen=True)
class Majority:
    """Per item: whether the majority guess is right, and whether its counts came from the reference set."""

    correct: tuple[bool, ...]
    from_reference: tuple[bool, ...]


def accuracy(correct: Sequence[bool]) -> float:
    """Share of True. Raises ValueError on an empty sequence."""
    if not correct:
        raise ValueError("accuracy of nothing")
    return sum(correct) / len(correct)


def majority_baseline(items: Sequence[Item], reference: Iterable[Item] = ()) -> Majority:
    """Answer every item with the offered class that is the most common answer of its topic, without looking.

    Counts come from `reference` for the topics that it has, else from `items` themselves.
    Ties go to the alphabetically first class.
    """
    counts, own = _answer_counts(reference), _answer_counts(items)
    correct = []
    for item in items:
        count = counts.get(item.topic, own[item.topic])
        guess = min(item.classes, key=lambda key: (-count[item.text_of(key)], item.text_of(key)))
        correct.append(guess == item.answer)
    return Majority(tuple(correct), tuple(item.topic in counts for item in items))


def _answer_counts(items: Iterable[Item]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        counts[item.topic][item.text_of(item.answer)] += 1
    return dict(counts)


def random_baseline(items: Sequence[Item]) -> float:
    """Expected accuracy of a uniform guess: the mean of one over the number of classes."""
    return sum(1 / len(item.classes) for item in items) / len(items)


def balanced_accuracy(answers: Sequence[str], predictions: Sequence[str | None]) -> float | None:
    """Mean over the classes of the share found; None when the answers hold fewer than two classes."""
    recalls = []
    for wanted in sorted(set(answers)):
        found = [guess == wanted for answer, guess in zip(answers, predictions, strict=True) if answer == wanted]
        recalls.append(accuracy(found))
    return sum(recalls) / len(recalls) if len(recalls) > 1 else None


def accuracy_measure(correct: Sequence[bool]) -> Measure:
    """Share of right answers; what was not parsed is wrong."""
    return mean_of(correct)


def balanced_accuracy_measure(answers: Sequence[str], predictions: Sequence[str | None]) -> Measure:
    """Mean over "yes" and "no" of the share found; not a number where the answers hold one of them alone."""
    pairs = list(zip(answers, predictions, strict=True))
    columns = [
        [float(answer == wanted and (not found or guess == wanted)) for answer, guess in pairs]
        for wanted in ("yes", "no")
        for found in (True, False)
    ]  # right yes, all yes, right no, all no
    return counted(columns, lambda sums: (sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3]) / 2)
