"""The face of a language model's graph: token ids or embeddings in, logits behind the last column out, K/V kept between calls.

How K/V is kept is the graph's dialect: `concat` makes longer tensors at every call, `gqa` writes into buffers in place. Callers
see neither: a cache is a value. Going on from it gives another one, and it may be gone on from again.

B rows, T new columns, D hidden size, V vocabulary, A rotary axes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import UsageError
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.bundle.manifest import GraphSpec

Logits: TypeAlias = NDArray[np.float32]  # [B, V]
Embeds: TypeAlias = NDArray[np.float32]  # [B, T, D]
Positions: TypeAlias = NDArray[np.int64]  # [A, B, T], or [1, B, T] where all axes are alike


class Cache(Protocol):
    """Keys and values of what B rows have read. batch: B."""

    @property
    def batch(self) -> int: ...

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens that each row has read, [B]."""
        ...

    @property
    def next_positions(self) -> NDArray[np.int64]:
        """Rotary position of each row's next text token, [B]; behind images of Qwen2.5-VL it is less than num_tokens."""
        ...

    def select(self, rows: Sequence[int], *, room: int = 0) -> Cache:
        """A copy with these rows, in this order; a row may appear several times (a shared prefix that branches).

        room: tokens that each row will read at least; more may follow, at the price of another copy. A prefix in reserved memory
        lends reserved rows while they are free: those hold as much as was reserved, and no more.
        """
        ...

    def compact(self, rows: Sequence[int]) -> Cache:
        """Only these rows, ascending, go on. Unlike `select` it may take the memory of this cache, which is spent by it."""
        ...

    def truncated(self, num_tokens: int, next_position: int, *, room: int = 0) -> Cache:
        """The first tokens of a one-row prefix go on. next_position: of text behind them. room: tokens that will be read.

        Takes the memory of this cache, which is spent by it: a use of it later may raise RunnerError.
        """
        ...

    def kv(self, row: int) -> tuple[NDArray[Any], ...]:
        """One row's keys and values in the order of `past_names`, each [K, num_tokens, d]."""
        ...


class Decoder(Protocol):
    """The language model in one dialect. engine_calls: all so far."""

    engine_calls: int

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Ids of any shape [...] -> embeddings [..., D]."""
        ...

    def reserve(self, rows: int, capacity: int) -> None:
        """Take the K/V memory of a whole session at once: a prefix and `rows` branches, each of up to `capacity` tokens.

        Nothing happens when as much is reserved already; more is new memory. A dialect whose tensors grow by themselves reserves
        nothing. Raises UsageError (more than the model can read), RunnerError (no memory).
        """
        ...

    def empty_cache(self, batch: int = 1, *, room: int = 0) -> Cache:
        """A cache of nothing, in memory of its own with room for so many tokens a row."""
        ...

    def prefix_cache(self, *, room: int = 0) -> Cache:
        """An empty one-row cache in the session's own memory; what was read into that memory before is spent.

        room: tokens that will be read. Raises RunnerError (no memory).
        """
        ...

    def forward(self, embeds: Embeds, cache: Cache, positions: Positions | None = None) -> tuple[Logits, Cache]:
        """Read the same number of columns in every row, behind `cache`. positions: None = text that goes on.

        Returns logits [B, V] and the longer cache. Raises RunnerError when the engine fails, or reserved memory is full.
        """
        ...

    def read(
        self,
        sequences: Sequence[Sequence[int]],
        cache: Cache,
        deadline: Deadline | None = None,
    ) -> tuple[Logits, Cache]:
        """Read one id sequence per row, of any lengths > 0.

        Raises DeadlineExpiredError where a further engine call would come too late or is not wanted, RunnerError.
        """
        ...

    def step(self, tokens: Sequence[int], cache: Cache) -> tuple[Logits, Cache]:
        """Read one token per row."""
        ...


def cache_dtype(spec: GraphSpec) -> np.dtype[Any]:
    """dtype of a decoder graph's K/V: float16 in fp16 graphs, else float32."""
    return np.dtype(next(tensor.dtype for tensor in spec.inputs if tensor.name.startswith("past_key_values.")))


def text_positions(next_positions: NDArray[np.int64], mask: NDArray[np.int64]) -> Positions:
    """Positions [1, B, T] of text that goes on at next_positions [B]. mask [B, T]: 0 = left padding, whose position is idle."""
    return np.asarray(next_positions[:, None] + np.maximum(mask.cumsum(axis=1) - 1, 0))[None]


def behind(cache: Cache, positions: Positions) -> NDArray[np.int64]:
    """Each row's next text position [B] when `cache` has been read on to these positions: the largest so far, plus 1."""
    return np.asarray(np.maximum(cache.next_positions, positions.max(axis=(0, 2)) + 1))


def graph_positions(positions: Positions, rotary_axes: int) -> NDArray[np.int64]:
    """Positions as a graph takes them: [B, T] with one axis, else [A, B, T]."""
    if rotary_axes == 1:
        return np.asarray(positions[0])
    return np.broadcast_to(positions, (rotary_axes, *positions.shape[1:]))


def check_reservation(rows: int, capacity: int, max_positions: int) -> None:
    """Raises UsageError when no session could want this much K/V memory."""
    if rows < 1 or not 1 <= capacity <= max_positions:
        raise UsageError(
            f"K/V memory for {rows} branches of {capacity} tokens; expected 1 branch or more, and 1 to {max_positions} tokens, "
            "which is what the model can read. Use fewer cameras, shorter questions or fewer new tokens."
        )
