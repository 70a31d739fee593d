"""The named parts of a structured answer ("Final: ...", "Object: ..."), which Drive-KD's rubrics reward."""

from __future__ import annotations

from drivekd.runtime.answers.named_parts import named_parts


def field_names(text: str) -> tuple[str, ...]:
    """Names of the parts of `text`, in order and as written: here, unlike in the car's fields, order, case and repetition count,
    and so does a part that was cut before its value. What a part is: drivekd.runtime.answers.named_parts."""
    return tuple(name for name, _ in named_parts(text)[1])


def is_schema_valid(text: str, example: str) -> bool:
    """Whether `text` has, in order, every named part that `example` (the true answer) has."""
    found = iter(field_names(text))
    return all(name in found for name in field_names(example))
