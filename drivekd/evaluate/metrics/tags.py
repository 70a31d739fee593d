"""Object tags: which of the true ones were found.

A predicted and a true tag match when they name the same camera and lie closer than 16 px (L1, at 1600x900: DriveLM's threshold,
https://github.com/OpenDriveLab/DriveLM challenge/evaluation.py); each tag matches once, and as many as possible match. Pixel and
normalised tags are the same points: the style is decided for each writer (drivekd.tags).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivekd.tags import FRAME_HEIGHT_PX, FRAME_WIDTH_PX, Tag

from .measures import Measure, counted, mean_of

TAG_TOLERANCE_PX = 16.0  # L1 at 1600x900, DriveLM's own threshold


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


def first_object_hit(predicted: Sequence[Tag], true: Sequence[Tag], *, tolerance_px: float = TAG_TOLERANCE_PX) -> bool:
    """Whether the tag that is named first is the true answer's first: what to notice first."""
    return bool(predicted and true) and _distance_px(predicted[0], true[0]) < tolerance_px


def without_given(tags: Sequence[Tag], given: Sequence[Tag]) -> list[Tag]:
    """Tags that the question does not name itself: to repeat those finds nothing."""
    return [tag for tag in tags if all(_distance_px(tag, known) >= TAG_TOLERANCE_PX for known in given)]


def tag_measures(counts: Sequence[TagCounts], first_hits: Sequence[bool]) -> dict[str, Measure]:
    """By name, over answers: precision, recall and F1 of all tags together, share of answers with the right first object."""
    columns = [[float(getattr(one, name)) for one in counts] for name in ("matched", "predicted", "true")]
    return {
        "tag_precision": counted(columns, lambda sums: sums[..., 0] / sums[..., 1], empty=0.0),
        "tag_recall": counted(columns, lambda sums: sums[..., 0] / sums[..., 2]),
        "tag_f1": counted(columns, lambda sums: 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])),
        "first_object": mean_of(first_hits),
    }
