"""Several questions about one prefix: the prefix is read once, the questions branch off and are decoded as one batch.

B branches. Every decode step reads the weights once for all branches; a branch that has ended leaves the batch. Tokens that a
grammar forces are not chosen, and no step is made for each: they are read together with the token before them, where that pays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drivekd.runtime.answers.answer import FinishReason
from drivekd.runtime.answers.deadline import Deadline, DeadlineExpiredError
from drivekd.runtime.answers.grammar import Constraint
from drivekd.runtime.decoder.protocol import Cache, Decoder, Logits

from .sampling import Sampler

ROOM = 64  # tokens of an answer, where the caller does not say: in-place caches are made that much longer than the question


@dataclass
class Branch:
    """What one question has generated so far, without the end of turn.

    logprobs: of the tokens that were chosen, not of those that the grammar forced (`forced` of them). pending: the last tokens,
    which the decoder has not read yet.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    finished_ms: float = 0.0
    constraint: Constraint | None = None
    forced: int = 0
    pending: list[int] = field(default_factory=list)


def opened(constraint: Constraint | None) -> Branch:
    """A branch at its start. The tokens it has already must be read with its question. Raises RunnerError."""
    if constraint is None:
        return Branch()
    tokens = constraint.opening()
    return Branch(tokens, constraint=constraint, forced=len(tokens))


def branch(
    decoder: Decoder,
    prefix: Cache,
    questions: Sequence[Sequence[int]],
    *,
    room: int | Sequence[int] = ROOM,
    deadline: Deadline | None = None,
) -> tuple[Logits, Cache]:
    """Read each question [Q_i ids] after a copy of the one-row prefix. Returns logits [B, V] and a cache of B rows.

    room: tokens that the answers will have, or each of them. Raises DeadlineExpiredError between two engine calls, RunnerError.
    """
    assert prefix.batch == 1
    rooms = _each(room, len(questions))
    longest = max(len(question) + more for question, more in zip(questions, rooms, strict=True))
    copies = prefix.select([0] * len(questions), room=longest)
    return decoder.read(questions, copies, deadline)


def decode(
    decoder: Decoder,
    logits: Logits,
    cache: Cache,
    *,
    stop_id: int,
    max_new_tokens: int | Sequence[int],
    deadline: Deadline,
    on_token: Callable[[int, Branch], None],
    branches: list[Branch] | None = None,
    sampler: Sampler | None = None,
) -> list[Branch]:
    """Generate until every branch has ended, from the logits [B, V] that follow its question. With constraints they are spoilt.

    max_new_tokens: after which an answer is cut, of all or of each; what the grammar forces behind the last of them is kept, it
    costs nothing. on_token(index, branch) is called for every branch that has not ended, once a step and once more when it ends.
    branches: as `opened` gives them, None = free text. sampler: None = greedy.
    Raises RunnerError.
    """
    branches = [Branch() for _ in range(cache.batch)] if branches is None else branches
    sampler = Sampler() if sampler is None else sampler
    rows = list(range(cache.batch))  # branch of each row of the batch
    limits = _each(max_new_tokens, cache.batch)
    while True:
        _choose(sampler, logits, branches, rows, stop_id, limits)
        _end(branches, rows, deadline.interruption(), deadline)
        for row in rows:
            on_token(row, branches[row])
        going = [i for i, row in enumerate(rows) if branches[row].finish_reason is None]
        if not going:
            return branches
        if len(going) < len(rows):
            cache, rows = cache.compact(going), [rows[i] for i in going]
        try:
            logits, cache = _read(decoder, [branches[row] for row in rows], cache, deadline)
        except DeadlineExpiredError:  # between two calls of one step: its logits are not all there
            _end(branches, rows, deadline.interruption() or "deadline", deadline)
            for row in rows:
                on_token(row, branches[row])
            return branches


def reads_ahead(num_tokens: int, num_rows: int) -> bool:
    """Whether a row reads all its unread tokens before the next step, rather than one a step with the num_rows of its batch.

    A call costs the reading of the weights, and some for each token in it: 60 + 10 n ms of a CPU for n tokens (InternVL3-1B in
    int4). Alone, a row reads n tokens in one call instead of n. In a batch they take one call more, and save n - 1 steps, which
    all rows would have shared. benchmarks/runtime/triad_forced.py counts calls and seconds.
    """
    return num_tokens > (1 if num_rows == 1 else num_rows + 1)


def _choose(
    sampler: Sampler, logits: Logits, branches: Sequence[Branch], rows: Sequence[int], stop_id: int, limits: Sequence[int]
) -> None:
    """The next token of every row of the batch that has read all it has."""
    places = [place for place, row in enumerate(rows) if not branches[row].pending]
    if not places:
        return
    chosen_rows = [rows[place] for place in places]
    tokens, logprobs = sampler.choose(
        logits if len(places) == len(rows) else logits[places],
        branches=chosen_rows,
        masks=[branches[row].constraint for row in chosen_rows],
    )
    for row, token, logprob in zip(chosen_rows, tokens.tolist(), logprobs.tolist(), strict=True):
        _append(branches[row], token, logprob, stop_id, limits[row])


def _each(value: int | Sequence[int], count: int) -> Sequence[int]:
    """One number for all, or one each."""
    return [value] * count if isinstance(value, int) else value


def _append(state: Branch, token: int, logprob: float, stop_id: int, max_new_tokens: int) -> None:
    if token == stop_id:
        state.finish_reason = "stop"
        return
    forced = _forced(state.constraint, token)
    state.tokens += [token, *forced]
    state.logprobs.append(logprob)
    state.forced += len(forced)
    if state.constraint is not None and state.constraint.finished:
        state.finish_reason = "stop"
    elif len(state.tokens) >= max_new_tokens:
        state.finish_reason = "length"
    else:
        state.pending = [token, *forced]


def _forced(constraint: Constraint | None, token: int) -> list[int]:
    """What the grammar forces behind a chosen token."""
    if constraint is None:
        return []
    constraint.accept(token)
    return constraint.forced()


def _end(branches: Sequence[Branch], rows: Sequence[int], reason: FinishReason | None, deadline: Deadline) -> None:
    for row in rows:
        state = branches[row]
        state.finish_reason = state.finish_reason or reason
        state.finished_ms = deadline.elapsed_ms()


def _read(decoder: Decoder, states: Sequence[Branch], cache: Cache, deadline: Deadline) -> tuple[Logits, Cache]:
    """One step: every row reads its next token, or all it has."""
    parts = []
    for state in states:
        count = len(state.pending) if reads_ahead(len(state.pending), len(states)) else 1
        parts.append(state.pending[:count])
        state.pending = state.pending[count:]
    if all(len(part) == 1 for part in parts):
        return decoder.step([part[0] for part in parts], cache)
    return decoder.read(parts, cache, deadline)


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
