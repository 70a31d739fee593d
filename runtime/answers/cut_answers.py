"""An answer that was cut short becomes a valid one, and says nothing that the model had not said in full.

A string, a number or a name that was cut might have become another one, so it is null. An array keeps the items it has, the last
one perhaps with null in it; an array of which nothing is known is null, not empty. What was not reached is null, and `complete`
is false. An item that comes again in a set is left out: a model that goes round in circles says nothing new.
"""

from __future__ import annotations

import json
import re
from typing import Any

from drivekd.errors import RunnerError

from .answer import FinishReason
from .schemas import COMPLETE, Schema, kind, valid_answer, without_repeats

CLOSERS = {"{": "}", "[": "]"}
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def structured_answer(schema: Schema, text: str, finish_reason: FinishReason) -> tuple[str, dict[str, Any], bool]:
    """What a branch has generated -> the answer's compact JSON, its object, and whether the model came to its end.

    Raises RunnerError when the model ended an answer that does not fit its schema: the grammar is then not at work.
    """
    answer = close_answer(schema, text)
    complete = bool(answer[COMPLETE])
    if finish_reason == "stop" and not complete:
        fault = valid_answer(schema, _parsed(text))
        raise RunnerError(f"a structured answer ended that does not fit its schema ({fault}): {text!r:.200}")
    if complete and answer == _parsed(text):
        return text, answer, True  # what was streamed
    return json.dumps(answer, separators=(",", ":"), ensure_ascii=False, allow_nan=False), answer, complete


def close_answer(schema: Schema, text: str) -> dict[str, Any]:
    """The answer that `text`, the beginning of one, holds; always valid against `schema`.

    text: compact JSON, cut anywhere; of a text that is something else nothing is kept.
    """
    answer = without_repeats(schema, _parsed(text))
    if isinstance(answer, dict) and valid_answer(schema, answer) is None:
        return answer
    closed, num_open = _closed(text)
    filled = _filled(schema, _parsed(closed), num_open) or dict.fromkeys(schema["properties"])
    return {**filled, COMPLETE: False}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON: nothing that could be kept
        return None


def _closed(text: str) -> tuple[str, int]:
    """The text up to its last whole value, with what is open there closed; and how many containers that were."""
    stack: list[str] = []
    end, before = 0, ""
    for match in TOKEN.finditer(text):
        token = match[0]
        if token in CLOSERS:
            stack.append(CLOSERS[token])
        elif token in CLOSERS.values():
            if stack[-1:] != [token]:
                break
            stack.pop()
        if token[0] == '"' and not STRING.fullmatch(token):
            break
        if _whole(token, before, stack):
            end = match.start() if token == "," else match.end()
        before = token
    return text[:end] + "".join(reversed(stack)), len(stack)


def _whole(token: str, before: str, stack: list[str]) -> bool:
    """Whether a value ends with this token, or before this comma. A number or a literal ends where the next token begins."""
    if token[0] != '"':
        return token in (",", *CLOSERS, *CLOSERS.values())
    is_key = before == "{" or (before == "," and stack[-1:] == ["}"])
    return not is_key


def _filled(schema: Schema, value: Any, num_open: int) -> Any:
    """`value` as the schema wants it, null for what it has not. num_open: of the containers that end with it, those cut open."""
    if kind(schema) == "object" and isinstance(value, dict):
        return _filled_object(schema, value, num_open)
    if kind(schema) == "array" and isinstance(value, list):
        return _filled_array(schema, value, num_open)
    return value if valid_answer(schema, value) is None else None


def _filled_object(schema: Schema, value: dict[str, Any], num_open: int) -> dict[str, Any] | None:
    last = next(reversed(value), None)
    filled = {
        name: _filled(part, value.get(name), num_open - 1 if name == last else 0) for name, part in schema["properties"].items()
    }
    nothing = all(item is None for item in filled.values())
    return None if nothing and num_open > 0 else filled


def _filled_array(schema: Schema, value: list[Any], num_open: int) -> list[Any] | None:
    items = [_filled(schema["items"], item, num_open - 1 if index == len(value) - 1 else 0) for index, item in enumerate(value)]
    if num_open > 0:
        items = [item for item in items if item is not None]
    items = without_repeats(schema, items)
    fits = valid_answer(schema, items) is None
    return items if fits and (items or num_open <= 0) else None
