"""The numbers of an evaluation, pure and without a judge: texts, tags and classes in, numbers with their intervals out.

measures.py    a metric as sums over answers    intervals.py  how sure it is: bootstrap by scene, paired for two runs
accuracy.py    choice, yes/no, baselines        tags.py       object tags: precision, recall, F1, first object
language.py    BLEU, ROUGE_L, CIDEr (COCO)      tokens.py     the words that these count
actions.py     sets of planned actions          drivelm.py    DriveLM's score by the upstream rules
drivebench.py  upstream's choice rule           nuscenes_qa.py  exact match by type and hop
"""

from .accuracy import Item, Majority, accuracy, balanced_accuracy, majority_baseline, random_baseline
from .intervals import (
    NUM_RESAMPLES,
    Difference,
    Estimate,
    Interval,
    bootstrap_interval,
    estimate,
    excludes,
    paired_difference,
)
from .measures import Measure
from .tags import TAG_TOLERANCE_PX, TagCounts, match_tags

__all__ = [
    "NUM_RESAMPLES",
    "TAG_TOLERANCE_PX",
    "Difference",
    "Estimate",
    "Interval",
    "Item",
    "Majority",
    "Measure",
    "TagCounts",
    "accuracy",
    "balanced_accuracy",
    "bootstrap_interval",
    "estimate",
    "excludes",
    "majority_baseline",
    "match_tags",
    "paired_difference",
    "random_baseline",
]
