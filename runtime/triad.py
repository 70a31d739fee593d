"""Several questions about one prefix: the prefix is read once, the questions branch off and are decoded as one batch.

B branches. Every decode step reads the weights once for all branches; a branch that has ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .answer import FinishReason
from .deadline import Deadline
from .decoder import Cache, Decoder, Logits
from .sampling import greedy

ROOM = 64  # tokens of an answer, where the caller does not say: in-place caches are made that much longer than the question


@dataclass
class Branch:
    """What one question has generated so far. The end-of-turn token is in neither list."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    finished_ms: float = 0.0


def branch(
    decoder: Decoder,
    prefix: Cache,
    questions: Sequence[Sequence[int]],
    *,
    room: int = ROOM,
    deadline: Deadline | None = None,
) -> tuple[Logits, Cache]:
    """Read each question [Q_i ids] after a copy of the one-row prefix. Returns logits [B, V] and a cache of B rows.

    room: tokens that the answers will have. Raises DeadlineExpiredError between two engine calls, RunnerError.
    """
    assert prefix.batch == 1
    copies = prefix.select([0] * len(questions), room=max(map(len, questions)) + room)
    return decoder.read(questions, copies, deadline)


def decode(
    decoder: Decoder,
    logits: Logits,
    cache: Cache,
    *,
    stop_id: int,
    max_new_tokens: int,
    deadline: Deadline,
    on_token: Callable[[int, Branch], None],
) -> list[Branch]:
    """Generate greedily until every branch has ended, from the logits [B, V] that follow its question.

    on_token(row, branch) is called after each new token and once more when the branch has ended.
    """
    branches = [Branch() for _ in range(cache.batch)]
    rows = list(range(cache.batch))  # branch of each row of the batch
    while True:
        tokens, logprobs = greedy(logits)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            _append(branches[row], token, logprob, stop_id, max_new_tokens)
        if deadline.expired():
            for row in rows:
                branches[row].finish_reason = branches[row].finish_reason or "deadline"
        for row in rows:
            branches[row].finished_ms = deadline.elapsed_ms()
            on_token(row, branches[row])
        going = [i for i, row in enumerate(rows) if branches[row].finish_reason is None]
        if not going:
            return branches
        if len(going) < len(rows):
            cache, rows = cache.compact(going), [rows[i] for i in going]
        logits, cache = decoder.step([branches[row].tokens[-1] for row in rows], cache)


def _append(state: Branch, token: int, logprob: float, stop_id: int, max_new_tokens: int) -> None:
    if token == stop_id:
        state.finish_reason = "stop"
        return
    state.tokens.append(token)
    state.logprobs.append(logprob)
    if len(state.tokens) == max_new_tokens:
        state.finish_reason = "length"


def forced_logits(
    decoder: Decoder, prefix: Cache, questions: Sequence[Sequence[int]], tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Logits [N, B, V] that predict tokens [N, B] when each step is fed the given token, not its own choice."""
    logits, cache = branch(decoder, prefix, questions, room=len(tokens))
    steps = [logits]
    for previous in tokens[:-1]:
        logits, cache = decoder.step(previous.tolist(), cache)
        steps.append(logits)
    return np.stack(steps)
