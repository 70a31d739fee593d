"""Text in pieces while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
