"""A logistic map from the log-odds of an answer's tokens to how likely the answer is right (Platt, 1999).

    p = exp(mean log-probability)        confidence = 1 / (1 + exp(-(slope * log(p / (1 - p)) + intercept)))

The likelihood is greatest where its gradient is 0; Newton's steps go there, halved where a whole one would lose. Right and wrong
answers count as Platt has them, (N+ + 1) / (N+ + 2) and 1 / (N- + 2) instead of 1 and 0: without that, answers that one threshold
tells apart would have an infinite slope, and a class without answers no end. 1 / slope is a temperature: with intercept 0 the
tokens' probabilities are sharpened or softened by it.

    N answers
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import DataError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MOST_STEPS = 200
GRADIENT = 1e-10  # of the mean likelihood: less is rounding


@dataclass(frozen=True)
class LogisticMap:
    """slope below 0: surer answers were less often right."""

    slope: float
    intercept: float

    def confidence(self, odds: Floats) -> Floats:
        """[N] log-odds -> [N], 0 to 1."""
        return _sigmoid(self.slope * odds + self.intercept)


def fit_map(odds: Floats, right: Bools) -> LogisticMap:
    """Of [N] answers' log-odds. Answers that are all right, all wrong or all equally sure give one confidence for all: slope 0.

    Raises DataError when there is none, or one is not finite.
    """
    check_finite(odds)
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    targets = np.where(right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    spread = float(odds.std())
    if min(num_right, num_wrong) == 0 or spread < 1e-12:
        mean = float(targets.mean())
        return LogisticMap(0.0, float(np.log(mean / (1 - mean))))
    center = float(odds.mean())
    slope, intercept = _newton((odds - center) / spread, targets)  # of order 1, so that no step is lost to rounding
    return LogisticMap(slope / spread, intercept - slope * center / spread)


def threshold_for(confidence: Floats, right: Bools, risk: float) -> float:
    """The confidence below which to abstain, so that of the rest at most `risk` is wrong, and as little as can be is left out.

    0 where nothing need be left out, 1 where nothing can be kept: a confidence is never 1.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], np.cumsum(~right[order])
    kept = np.flatnonzero((wrong / np.arange(1, len(order) + 1) <= risk) & np.append(sure[1:] < sure[:-1], True))
    if len(kept) == 0:
        return 1.0
    return 0.0 if kept[-1] == len(order) - 1 else float((sure[kept[-1]] + sure[kept[-1] + 1]) / 2)


def check_finite(logprobs: Floats) -> None:
    """Raises DataError: none, or some that are no numbers."""
    if len(logprobs) == 0:
        raise DataError("there is no answer to calibrate on")
    if bad := int((~np.isfinite(logprobs)).sum()):
        raise DataError(
            f"{bad} of {len(logprobs)} mean log-probabilities are not finite; answers without one cannot be calibrated"
        )


def _newton(x: Floats, targets: Floats) -> tuple[float, float]:
    parameters = np.zeros(2)
    design = np.stack([x, np.ones_like(x)], axis=1)  # [N, 2]
    for _ in range(MOST_STEPS):
        share = _sigmoid(design @ parameters)
        gradient = design.T @ (share - targets) / len(x)
        if np.abs(gradient).max() < GRADIENT:
            break
        hessian = (design * (share * (1 - share))[:, None]).T @ design / len(x) + 1e-12 * np.eye(2)
        step, before = np.linalg.solve(hessian, gradient), _loss(design @ parameters, targets)
        length = 1.0
        while length > 1e-8 and _loss(design @ (parameters - length * step), targets) > before:
            length /= 2
        parameters = parameters - length * step
    return float(parameters[0]), float(parameters[1])


def _loss(scores: Floats, targets: Floats) -> float:
    """Mean negative log-likelihood; log(1 + exp) without overflow."""
    return float(np.mean(np.logaddexp(0, scores) - targets * scores))


def _sigmoid(scores: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -scores)))
