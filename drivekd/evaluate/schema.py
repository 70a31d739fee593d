"""The named parts of a structured answer ("Final: ...", "Object: ..."), which Drive-KD's rubrics reward."""

from __future__ import annotations

import re

_FIELD = re.compile(r"^[\s\-*]*([A-Z][A-Za-z&\- ]{1,40}?)\**\s*:", re.MULTILINE)


def field_names(text: str) -> tuple[str, ...]:
    """Names of the parts of `text`, in order: a part begins a line with its capitalised name and a colon."""
    return tuple(name.strip() for name in _FIELD.findall(text))


def is_schema_valid(text: str, example: str) -> bool:
    """Whether `text` has, in order, every named part that `example` (the true answer) has."""
    found = iter(field_names(text))
    return all(name in found for name in field_names(example))
