"""Which tokens may come next, so that an answer fits its schema whatever the model wants to say.

llguidance compiles a schema for the bundle's own tokenizer. It allows compact JSON alone: whitespace carries nothing and costs
steps. Where the schema leaves one continuation only (keys, the rest of a name), it gives the tokens at once. It knows no
uniqueItems: the orders of a set of words are written out; objects that come again are left out behind it (cut_answers).

V vocabulary of the model, which may be larger than the tokenizer's
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from drivekd.errors import RunnerError, UsageError

from .schemas import COMPLETE, Schema, nullable, with_cameras

if TYPE_CHECKING:  # it is in llguidance's stubs only
    from llguidance._lib import JsonCompileOptions

WORD_BITS = 32  # llguidance writes its masks in words of int32
# No \u escapes: they can spell half a character, which no text holds; a character may stand for itself.
COMPACT: JsonCompileOptions = {"whitespace_flexible": False, "json_allowed_escapes": '"\\'}


class Grammars:
    """The grammars of a session's schemas, compiled when they are first asked for."""

    def __init__(self, tokenizer_json: bytes, vocab_size: int, end_of_turn_id: int, schemas: Mapping[str, Schema]) -> None:
        """tokenizer_json: bytes of the bundle's tokenizer.json. schemas: by capability. Nothing is compiled yet."""
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._end_of_turn_id = end_of_turn_id
        self._schemas = schemas
        self._tokenizer: LLTokenizer | None = None
        self._compiled: dict[tuple[str, tuple[str, ...]], tuple[Schema, LLMatcher]] = {}

    def warm_up(self) -> None:
        """Compile all. Raises RunnerError."""
        for capability in self._schemas:
            self.constraint(capability)

    def constraint(self, capability: str, cameras: Sequence[str] = ()) -> Constraint:
        """A constraint at the start of an answer about a frame of these cameras.

        Raises UsageError when the bundle has no schema for it, RunnerError when its grammar cannot be compiled.
        """
        if capability not in self._schemas:
            known = ", ".join(self._schemas) or "none"
            raise UsageError(f"capability {capability!r} has no schema in this bundle for a structured answer; it has: {known}")
        schema = with_cameras(self._schemas[capability], cameras)
        key = (capability, () if schema == self._schemas[capability] else tuple(cameras))
        if key not in self._compiled:
            self._compiled[key] = schema, self._compile(capability, schema)
        schema, matcher = self._compiled[key]
        return Constraint(matcher.deep_copy(), self._vocab_size, schema)

    def _compile(self, capability: str, schema: Schema) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = self._read_tokenizer()
        limits = LLParserLimits(verbose_errors=False)  # an error names the token, not the whole answer
        matcher = LLMatcher(self._tokenizer, _grammar(schema), log_level=0, limits=limits)
        if matcher.is_error():
            raise RunnerError(f"the grammar of {capability} cannot be compiled: {matcher.get_error()}")
        return matcher

    def _read_tokenizer(self) -> LLTokenizer:
        try:
            return LLTokenizer(
                self._tokenizer_json.decode(),
                n_vocab=self._vocab_size,
                eos_token=self._end_of_turn_id,
                slices=LLTokenizer.json_slices(),
            )
        except ValueError as error:
            raise RunnerError(f"llguidance cannot use this bundle's tokenizer.json for structured answers ({error})") from error


class Constraint:
    """The grammar's side of one answer. Every token, forced or chosen, is accepted once, in order. schema: what it holds to."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, schema: Schema) -> None:
        self.schema = schema
        self._matcher = matcher
        words = -(-vocab_size // WORD_BITS)
        self._bits = np.zeros(words, np.int32)

    def opening(self) -> list[int]:
        """The tokens that every answer begins with; they may be read together with the question. They are accepted."""
        return self.forced()

    def forced(self) -> list[int]:
        """The tokens that alone can come next, perhaps none. They are accepted. Raises RunnerError."""
        tokens = self._matcher.compute_ff_tokens()
        if self._matcher.is_error() or (tokens and not self._matcher.consume_tokens(tokens)):
            raise self._error()
        return list(tokens)

    def allows(self, token: int) -> bool:
        """Whether this token may come next: far cheaper than the mask, and a model that knows its schema needs no other."""
        return self._matcher.validate_tokens([token]) == 1

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits [V] of tokens that must not come next to -inf. Raises RunnerError."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise self._error()
        refused = np.unpackbits(~self._bits.view(np.uint8), count=len(logits), bitorder="little")
        logits[refused.view(np.bool_)] = -np.inf

    def accept(self, token: int) -> None:
        """Go on behind a chosen token. Raises RunnerError when it was not allowed."""
        if not self._matcher.consume_token(token):
            raise self._error()

    @property
    def finished(self) -> bool:
        """Whether the answer has ended: nothing but the end of the turn can follow."""
        return self._matcher.is_stopped()

    def _error(self) -> RunnerError:
        return RunnerError(f"the grammar failed: {self._matcher.get_error() or self._matcher.stop_reason()}")


def _grammar(schema: Schema) -> str:
    """`complete` can only be true: whoever gets to write it has come to the end."""
    properties = {**_written_out(schema)["properties"], COMPLETE: {"const": True}}
    return LLMatcher.grammar_from_json_schema({**schema, "properties": properties}, overrides=COMPACT)


def _written_out(schema: Schema) -> Schema:
    """The same in words that llguidance knows."""
    known = {key: value for key, value in schema.items() if key not in ("uniqueItems", "format")}
    if "properties" in schema:
        return {**known, "properties": {name: _written_out(part) for name, part in schema["properties"].items()}}
    if "items" not in schema:
        return known
    if schema.get("uniqueItems") and "enum" in schema["items"]:
        sets = list(_sets(schema["items"]["enum"], schema.get("minItems", 0), schema["maxItems"]))
        return {"anyOf": [{"type": "null"}, *sets] if nullable(schema) else sets}
    return {**known, "items": _written_out(schema["items"])}


def _sets(words: Sequence[str], low: int, high: int) -> Iterator[Schema]:
    """Of each length, every beginning without a repeat, before a last word that is none of it."""
    for length in range(low, high + 1):
        for first in permutations(words, max(0, length - 1)):
            last = [{"enum": [word for word in words if word not in first]}] if length else []
            items = [*({"const": word} for word in first), *last]
            yield {"type": "array", "prefixItems": items, "items": False, "minItems": length, "maxItems": length}
