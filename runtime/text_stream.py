"""Text in pieces while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a tokenizer gives for the first bytes of a character that is not complete yet


class TextStream:
    """Calls `emit` with pieces whose concatenation is the decoded text of all tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str], emit: Callable[[str], None]) -> None:
        self._decode = decode
        self._emit = emit
        self._sent = ""

    def update(self, tokens: Sequence[int], *, final: bool) -> None:
        """Emit what `tokens` (all so far) add. An incomplete character waits for the next token, or for `final`."""
        text = self._decode(tokens)
        if text.endswith(REPLACEMENT) and not final:
            return
        if len(text) > len(self._sent):
            self._emit(text[len(self._sent) :])
            self._sent = text
