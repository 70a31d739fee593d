"""BLEU-1..4, ROUGE_L and CIDEr in the COCO variant: how much an open answer's words are those of the true one.

Computed by pycocoevalcap's pure-Python parts (extra `eval`; METEOR and SPICE would start Java) on words from tokens.py.
BLEU counts over the whole corpus (Papineni et al. 2002), ROUGE_L is the mean of answers with beta 1.2 (Lin 2004), CIDEr is
CIDEr-D (Vedantam et al. 2015), whose maximum is 10. CIDEr compares n-grams up to four words by how rare they are among the true
answers, so that a one-word answer cannot reach 10 and a single answer has none at all: `cider` is therefore divided by what the
true answers themselves would get, and a perfect answerer has 1. A BLEU order that no true answer is long enough for does not
exist.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .measures import Floats, Measure, mean_of
from .tokens import NAME as WORDS
from .tokens import words

ORDERS = 4
MISSING = "needs pycocoevalcap: pip install 'drivekd[eval]'"
_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's own smoothing, so that the sums give its numbers


def is_available() -> bool:
    """Whether pycocoevalcap is installed."""
    return importlib.util.find_spec("pycocoevalcap") is not None


def implementation() -> str:
    """Name and version of what computes, for the output."""
    return f"pycocoevalcap {importlib.metadata.version('pycocoevalcap')}, words: {WORDS}"


@dataclass(frozen=True)
class Language:
    """Of N answers. bleu_parts [N, 10]: matches and n-grams of orders 1 to 4, words, words of the true answer.

    rouge_l [N]. cider [N], and cider_of_truth [N]: what each true answer would get itself, both 0 to 10.
    """

    bleu_parts: Floats
    rouge_l: Floats
    cider: Floats
    cider_of_truth: Floats

    def measures(self) -> dict[str, Measure]:
        """By name; those that the true answers cannot decide are left out."""
        found = {
            f"bleu_{order + 1}": Measure(self.bleu_parts, _Bleu(order)) for order in range(ORDERS) if self._longest() > order
        }
        found["rouge_l"] = mean_of(self.rouge_l.tolist())
        if self.cider_of_truth.sum() > 0:
            parts = np.stack([self.cider, self.cider_of_truth], axis=1)
            found["cider"] = Measure(parts, lambda sums: sums[..., 0] / sums[..., 1])
        return found

    def bleu(self) -> list[float]:
        """BLEU-1 to 4 of the corpus."""
        return [float(_Bleu(order)(self.bleu_parts.sum(axis=0))) for order in range(ORDERS)]

    def _longest(self) -> float:
        return float(self.bleu_parts[:, 2 * ORDERS + 1].max())


def compare(answers: Sequence[str], truths: Sequence[str]) -> Language:
    """Compare each answer with its one true answer; the N truths together are the corpus. Needs pycocoevalcap, and N > 0."""
    given, true = [" ".join(words(text)) for text in answers], [" ".join(words(text)) for text in truths]
    return Language(_bleu_parts(given, true), _rouge_l(given, true), _cider(given, true), _cider(true, true))


def _bleu_parts(given: Sequence[str], true: Sequence[str]) -> Floats:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=ORDERS)
    for answer, truth in zip(given, true, strict=True):
        scorer += (answer, [truth])
    rows = [[*one["correct"], *one["guess"], one["testlen"], one["reflen"][0]] for one in scorer.ctest]
    return np.asarray(rows, np.float64)


@dataclass(frozen=True)
class _Bleu:
    """Geometric mean of the precisions up to order + 1 words, with the brevity penalty; as pycocoevalcap smooths it."""

    order: int

    def __call__(self, sums: Floats) -> Floats:
        n = self.order + 1
        precisions = (sums[..., :n] + _TINY) / (sums[..., ORDERS : ORDERS + n] + _SMALL)
        ratio = (sums[..., 2 * ORDERS] + _TINY) / (sums[..., 2 * ORDERS + 1] + _SMALL)
        penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
        return np.asarray(precisions.prod(axis=-1) ** (1 / n) * penalty, np.float64)


def _rouge_l(given: Sequence[str], true: Sequence[str]) -> Floats:
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    pairs = zip(given, true, strict=True)
    # An empty text has one empty word there, which would match another one.
    return np.asarray([scorer.calc_score([answer], [truth]) if answer and truth else 0.0 for answer, truth in pairs], np.float64)


def _cider(given: Sequence[str], true: Sequence[str]) -> Floats:
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=ORDERS)
    for answer, truth in zip(given, true, strict=True):
        scorer += (answer, [truth])
    if not any(true):
        return np.zeros(len(true))
    return np.asarray(scorer.compute_score()[1], np.float64)
