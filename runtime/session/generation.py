"""One frame through the engines: read what is new of it, branch into its questions, decode them together, stream their texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from drivekd.chat import PromptEncoder
from drivekd.images import RGBImage
from drivekd.runtime.answers.ask import OnText
from drivekd.runtime.answers.deadline import Deadline, DeadlineExpiredError
from drivekd.runtime.decoder.protocol import Cache, Decoder

from .prefix import PrefixReader
from .sampling import Sampler
from .triad import Branch, branch, decode

REPLACEMENT = "\ufffd"  # what a tokenizer gives for the first bytes of a character that is not complete yet


class TextStream:
    """Calls `emit` with pieces whose concatenation is the decoded text of all tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str], emit: Callable[[str], None]) -> None:
        self._decode = decode
        self._emit = emit
        # Tokens of the last two pieces: what a token says may depend on the one before, never on all (a step must not cost more
        # the longer its answer is).
        self._start = self._sent = 0

    def update(self, tokens: Sequence[int], *, final: bool) -> None:
        """Emit what `tokens` (all so far) add. An incomplete character waits for the next token, or for `final`."""
        if len(tokens) == self._sent:
            return
        text = self._decode(tokens[self._start :])
        if text.endswith(REPLACEMENT) and not final:
            return
        if piece := text[len(self._decode(tokens[self._start : self._sent])) :]:
            self._emit(piece)
            self._start, self._sent = self._sent, len(tokens)


COUNTS = ("images_encoded", "tokens_prefilled", "engine_calls", "tokens_forced")


@dataclass(frozen=True)
class Wanted:
    """What one call asks of the engines.

    ids: of each question by its name, with the tokens that its answer is known to begin with. branches: one a question, filled
    while it is answered. limits: tokens that each may have. on_text(name, piece): told of new text.
    """

    ids: dict[str, list[int]]
    branches: list[Branch]
    limits: tuple[int, ...]
    sampler: Sampler
    deadline: Deadline
    on_text: OnText | None = None


@dataclass
class Generation:
    """The engines of a session at work. stop_id: the end of turn. rows: questions that are asked together.

    timings_ms: of the last run, by stage: vision, prefill (system prompt + images), questions, decode, ttft. counts: of the last
    run: images_encoded, tokens_prefilled, engine_calls (of the decoder), tokens_forced (by a grammar).
    """

    decoder: Decoder
    prefix: PrefixReader
    prompts: PromptEncoder
    stop_id: int
    rows: int
    timings_ms: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def num_tokens(self, num_images: int, wanted: Wanted) -> int:
        """Of the longest branch at its end."""
        ends = [len(ids) + limit for ids, limit in zip(wanted.ids.values(), wanted.limits, strict=True)]
        return self.prefix.num_tokens(num_images) + max(ends)

    def run(self, tiles: Mapping[str, RGBImage] | None, wanted: Wanted) -> None:
        """Fill the wanted branches; each has a finish_reason then. tiles: by camera, None = time ended before they were made.

        Raises RunnerError.
        """
        self.timings_ms, self.counts, calls = {}, dict.fromkeys(COUNTS, 0), self.decoder.engine_calls
        if tiles is None:
            return _leave_unanswered(wanted)
        self.decoder.reserve(max(self.rows, len(wanted.ids)), self.num_tokens(len(tiles), wanted))
        prefix = self.prefix.read(tiles, wanted.deadline)
        self.timings_ms |= self.prefix.timings_ms
        if prefix is None or wanted.deadline.interruption():
            _leave_unanswered(wanted)
        else:
            self._answer(prefix, wanted)
        forced = sum(state.forced for state in wanted.branches)
        self.counts = self.prefix.counts | {"engine_calls": self.decoder.engine_calls - calls, "tokens_forced": forced}

    def _answer(self, prefix: Cache, wanted: Wanted) -> None:
        deadline, start_ms = wanted.deadline, wanted.deadline.elapsed_ms()
        questions = list(wanted.ids.values())
        try:
            logits, cache = branch(self.decoder, prefix, questions, room=wanted.limits, deadline=deadline)
        except DeadlineExpiredError:
            return _leave_unanswered(wanted)
        first_ms = deadline.elapsed_ms()
        self.timings_ms |= {"questions": first_ms - start_ms, "ttft": first_ms}
        decode(
            self.decoder,
            logits,
            cache,
            stop_id=self.stop_id,
            max_new_tokens=wanted.limits,
            deadline=deadline,
            on_token=self._streams(wanted),
            branches=wanted.branches,
            sampler=wanted.sampler,
        )
        self.timings_ms["decode"] = deadline.elapsed_ms() - first_ms

    def _streams(self, wanted: Wanted) -> Callable[[int, Branch], None]:
        if wanted.on_text is None:
            return lambda row, state: None
        streams = [TextStream(self.prompts.decode, partial(wanted.on_text, name)) for name in wanted.ids]
        return lambda row, state: streams[row].update(state.tokens, final=state.finish_reason is not None)


def _leave_unanswered(wanted: Wanted) -> None:
    for state in wanted.branches:
        state.finish_reason = wanted.deadline.interruption() or "deadline"  # a deadline that has passed stays passed
        state.finished_ms = wanted.deadline.elapsed_ms()
