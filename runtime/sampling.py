"""Which token comes next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import RunnerError


def greedy(logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Logits [B, V] -> the likeliest token [B] and its natural-log probability [B].

    Raises RunnerError when a logit is not finite: argmax over NaN would speak, with confidence, about nothing.
    """
    if not np.isfinite(logits).all():
        raise RunnerError("the decoder gave logits that are not finite; the engine or its weights are broken: drivekd check")
    tokens = logits.argmax(axis=1)  # [B]
    top = np.take_along_axis(logits, tokens[:, None], axis=1)  # [B, 1]
    # exp in float32: three rows of 151,674 logits take .6 ms, 3.3 in float64, which every step would pay
    shares = np.exp(logits - top)  # [B, V], the likeliest 1
    return tokens, -np.log(shares.sum(axis=1, dtype=np.float64))


def top2_margin(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [..., V] -> distance of the two largest [...]: below the engines' rounding the argmax is a coin toss."""
    largest = np.partition(logits, -2, axis=-1)[..., -2:]
    return np.asarray(largest[..., 1] - largest[..., 0], np.float32)
