"""Which token comes next.

B rows (one per branch), V vocabulary
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import RunnerError
from drivekd.runtime.answers.ask import GREEDY, Sampling

Tokens: TypeAlias = NDArray[np.int64]  # [B]
Logprobs: TypeAlias = NDArray[np.float64]  # [B], natural


class Mask(Protocol):
    """What a grammar allows."""

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""
        ...

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits [V] of tokens that must not come next to -inf."""
        ...


class Sampler:
    """Chooses tokens for the branches of one frame.

    streams: the branches' names, in order. Each has random numbers of its own, so that an answer does not depend on which others
    are asked with it.
    """

    def __init__(self, sampling: Sampling = GREEDY, streams: Sequence[str] = ()) -> None:
        self._sampling = sampling
        self._streams = [np.random.default_rng([sampling.seed, zlib.crc32(name.encode())]) for name in streams]
        self._shares = np.empty(0, np.float32)  # memory of one row that every step uses again

    def choose(
        self,
        logits: NDArray[np.float32],
        *,
        branches: Sequence[int] | None = None,
        masks: Sequence[Mask | None] | None = None,
    ) -> tuple[Tokens, Logprobs]:
        """Logits [B, V] -> tokens [B] and the log-probabilities [B] that the model itself gave them, before mask and temperature.

        branches: of each row, None = all in order. masks: of each row; where there is one, `logits` may be written over.
        Raises RunnerError when a logit is not finite: argmax over NaN would speak, with confidence, about nothing.
        """
        tokens = logits.argmax(axis=1)  # [B]
        normalizers = [self._normalizer(row, float(row[token])) for row, token in zip(logits, tokens, strict=True)]
        is_drawn = self._sampling.temperature > 0
        for row, mask in zip(range(len(logits)), masks or (), strict=masks is not None):
            if mask is not None and (is_drawn or not mask.allows(int(tokens[row]))):
                tokens[row] = _likeliest_allowed(logits[row], mask)
        if is_drawn:
            tokens = self._drawn(logits, range(len(logits)) if branches is None else branches)
        return tokens, logits[range(len(logits)), tokens].astype(np.float64) - normalizers

    def _normalizer(self, row: NDArray[np.float32], top: float) -> float:
        """Logarithm of the sum of exp over one row of logits [V], whose largest is `top`. Raises RunnerError.

        exp in float32: 151,674 logits take .2 ms in all, five times that in float64.
        """
        if not (math.isfinite(top) and math.isfinite(row.min())):  # NaN is argmax's choice, wherever there is one
            raise RunnerError("the decoder gave logits that are not finite; the engine or its weights are broken: drivekd check")
        if len(self._shares) != len(row):
            self._shares = np.empty_like(row)
        shares = np.subtract(row, np.float32(top), out=self._shares)
        return top + math.log(np.exp(shares, out=shares).sum())

    def _drawn(self, logits: NDArray[np.float32], branches: Sequence[int]) -> Tokens:
        settings = self._sampling
        rows = zip(logits, branches, strict=True)
        return np.asarray(
            [_draw(row, settings.temperature, settings.top_p, self._streams[branch].random()) for row, branch in rows], np.int64
        )


def greedy(logits: NDArray[np.float32]) -> tuple[Tokens, Logprobs]:
    """Logits [B, V] -> the likeliest token [B] and its natural-log probability [B]. Raises RunnerError: a logit is not finite."""
    return Sampler().choose(logits)


def top2_margin(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [..., V] -> distance of the two largest [...]: below the engines' rounding the argmax is a coin toss."""
    largest = np.partition(logits, -2, axis=-1)[..., -2:]
    return np.asarray(largest[..., 1] - largest[..., 0], np.float32)


def _likeliest_allowed(row: NDArray[np.float32], mask: Mask) -> int:
    """Of one row of logits [V]; those of the other tokens become -inf. Raises RunnerError: there is none."""
    mask.mask(row)
    token = int(row.argmax())
    if row[token] == -np.inf:
        raise RunnerError("the grammar allows no token here; the bundle's schema and its tokenizer do not fit")
    return token


def _draw(logits: NDArray[np.float32], temperature: float, top_p: float, uniform: float) -> int:
    """One token of logits [V], the `uniform` (0 to 1) part of the way through the nucleus (arXiv 1904.09751, section 3.1)."""
    shares = np.exp((logits.astype(np.float64) - logits.max()) / temperature)  # [V]
    shares /= shares.sum()
    # Tokens below (1 - top_p) / V hold less than 1 - top_p together: the nucleus lies above, and V need not be sorted.
    order = np.flatnonzero(shares > (1 - top_p) / len(shares))
    if top_p < 1:
        order = order[np.argsort(-shares[order], kind="stable")]
    mass = shares[order].cumsum()
    if top_p < 1:
        mass = mass[: np.searchsorted(mass, top_p) + 1]
    return int(order[np.searchsorted(mass, uniform * mass[-1], side="right")])
