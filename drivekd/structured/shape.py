"""Facts into a schema's shape: what fits is kept as it is, what does not is null, what is too long ends with a whole clause."""

from __future__ import annotations

import re
from typing import Any

from drivekd.runtime.answers.schemas import COMPLETE, Schema, kind, valid_answer, without_repeats

_END_OF_CLAUSE = re.compile(r"[.;,](?=\s)")


def shaped(schema: Schema, facts: Any) -> Any:
    """The value of `schema` that `facts` hold; always valid but for a part that may not be null and has nothing.

    Facts are plain objects, lists, texts and numbers under the schema's own names; others are left out.
    """
    name = kind(schema)
    if name == "object":
        return _object(schema, facts) if isinstance(facts, dict) else None
    if name == "array":
        return _array(schema, facts) if isinstance(facts, list) else None
    if name == "string" and isinstance(facts, str):
        return fitting(facts, schema["maxLength"])
    return facts if facts is not None and valid_answer(schema, facts) is None else None


def _object(schema: Schema, facts: dict[str, Any]) -> dict[str, Any]:
    parts = {name: part for name, part in schema["properties"].items() if name != COMPLETE}
    return {name: shaped(part, facts.get(name)) for name, part in parts.items()}


def _array(schema: Schema, facts: list[Any]) -> list[Any] | None:
    items = [item for item in (shaped(schema["items"], one) for one in facts) if item is not None]
    items = without_repeats({**schema, "type": "array"}, items)[: schema["maxItems"]]
    return items if len(items) >= schema.get("minItems", 0) and (items or not facts) else None


def fitting(text: str, max_length: int) -> str | None:
    """The text on one line, up to the end of its last clause that fits; None where nothing does.

    >>> fitting("The van keeps its lane; nothing else is near.", 30), fitting("one very long word", 5)
    ('The van keeps its lane', None)
    """
    line = "".join(character for character in " ".join(text.split()) if character.isprintable()).rstrip(" .;,")
    if len(line) <= max_length:
        return line or None
    ends = [match.start() for match in _END_OF_CLAUSE.finditer(line) if match.start() <= max_length]
    return line[: ends[-1]] if ends and ends[-1] > 0 else None
