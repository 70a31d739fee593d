"""The numbers of an evaluation, pure and without a judge: accuracy, baselines, intervals, tag matching.

An `Item` is one scorable question: what may be answered (`classes`), and what is right (`answer`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from drivekd.tags import FRAME_HEIGHT_PX, FRAME_WIDTH_PX, Tag

Interval: TypeAlias = tuple[float, float]

NUM_RESAMPLES = 2_000
TAG_TOLERANCE_PX = 16.0  # L1 at 1600x900, DriveLM's own threshold
_CHUNK = 4_000_000  # resampled indices held at once (32 MB)


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


def bootstrap_interval(
    correct: Sequence[bool], clusters: Sequence[str], *, seed: int = 0, resamples: int = NUM_RESAMPLES
) -> Interval:
    """95 % percentile interval of the accuracy, drawing whole clusters (scenes), which are what is independent.

    Two cases in which resampling would claim to be certain: all right or all wrong takes the exact binomial bound over
    the C clusters, .025 ** (1 / C) (Clopper and Pearson 1934); a single mixed cluster says nothing, (0, 1).
    """
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    num_clusters = len(names)
    edge = 0.025 ** (1 / num_clusters)
    if all(correct):
        return edge, 1.0
    if not any(correct):
        return 0.0, 1.0 - edge
    if num_clusters == 1:
        return 0.0, 1.0
    sizes = np.bincount(index).astype(np.float64)  # [C]
    hits = np.bincount(index, weights=np.asarray(correct, np.float64)).astype(np.float64)  # [C]
    accuracies = _resampled_accuracies(hits, sizes, np.random.default_rng(seed), resamples)
    low, high = np.percentile(accuracies, [2.5, 97.5])
    return float(low), float(high)


def _resampled_accuracies(
    hits: NDArray[np.float64], sizes: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    num_clusters = len(sizes)
    rows = max(1, _CHUNK // num_clusters)
    parts = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, num_clusters, (min(rows, resamples - start), num_clusters))  # [R, C]
        parts.append(hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))  # [R]
    return np.concatenate(parts)


def excludes(interval: Interval, value: float) -> bool:
    """Whether `value` lies outside the interval."""
    low, high = interval
    return value < low or value > high


@dataclass(frozen=True)
class TagCounts:
    """Matched, predicted and true tags; counts of several texts add up."""

    matched: int = 0
    predicted: int = 0
    true: int = 0

    def __add__(self, other: TagCounts) -> TagCounts:
        return TagCounts(self.matched + other.matched, self.predicted + other.predicted, self.true + other.true)

    @property
    def precision(self) -> float:
        """Share of the predicted tags that are right; 0 without any."""
        return self.matched / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the true tags that were found; 0 without any."""
        return self.matched / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where there was nothing to find and nothing was said."""
        return 2 * self.matched / (self.predicted + self.true) if self.predicted + self.true else 1.0


def match_tags(predicted: Sequence[Tag], true: Sequence[Tag], *, tolerance_px: float = TAG_TOLERANCE_PX) -> TagCounts:
    """The most pairs of a predicted and a true tag of the same camera, closer than the tolerance (L1), each used once.

    Augmenting paths (Kuhn's algorithm): taking the closest pair first can match fewer.
    """
    near = [[j for j, t in enumerate(true) if _distance_px(p, t) < tolerance_px] for p in predicted]
    partner: dict[int, int] = {}  # true tag -> predicted tag

    def augment(i: int, tried: set[int]) -> bool:
        for j in near[i]:
            if j not in tried:
                tried.add(j)
                if j not in partner or augment(partner[j], tried):
                    partner[j] = i
                    return True
        return False

    matched = sum(augment(i, set()) for i in range(len(predicted)))
    return TagCounts(matched, len(predicted), len(true))


def _distance_px(a: Tag, b: Tag) -> float:
    if a.camera != b.camera:
        return float("inf")
    distance_px = abs(a.x - b.x) * FRAME_WIDTH_PX + abs(a.y - b.y) * FRAME_HEIGHT_PX
    return round(distance_px, 6)  # normalising left 1e-13: exactly 16 px must not pass as less
