"""Structured answers for tests, by capability, and random ones for any schema."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from drivekd.runtime.answers.schemas import COMPLETE, STEPS, Schema, kind, nullable

ANSWERS: dict[str, dict[str, Any]] = {
    "perception": {
        "objects": [
            {"camera": "CAM_FRONT", "position": [812, 455], "category": "van", "status": 'parked, door "open"'},
            {"camera": "CAM_BACK", "position": None, "category": None, "status": "überholt\\links 🚗"},
        ],
        "complete": True,
    },
    "reasoning": {
        "objects": [{"object": "white van", "state": "braking", "effect": "the gap closes"}],
        "complete": True,
    },
    "planning": {"actions": ["slow_down", "keep_lane"], "reason": "the van brakes", "probability": 0.75, "complete": True},
}


def answers(schema: Schema) -> st.SearchStrategy[Any]:
    """Random answers that fit a schema and are complete."""
    return _objects({name: _values(part) for name, part in schema["properties"].items()} | {COMPLETE: st.just(True)})


def _objects(parts: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """In the order of `parts`, which hypothesis does not keep."""
    return st.fixed_dictionaries(parts).map(lambda found: {name: found[name] for name in parts})


def _values(schema: Schema) -> st.SearchStrategy[Any]:
    values = _not_null(schema)
    return st.none() | values if nullable(schema) and kind(schema) != "enum" else values


def _not_null(schema: Schema) -> st.SearchStrategy[Any]:
    name = kind(schema)
    if name == "enum":
        return st.sampled_from(schema["enum"])
    if name == "object":
        return _objects({key: _values(part) for key, part in schema["properties"].items()})
    if name == "array":
        alike = repr if schema.get("uniqueItems") else None
        items = _values(schema["items"])
        return st.lists(items, min_size=schema.get("minItems", 0), max_size=schema["maxItems"], unique_by=alike)
    if name == "string":
        return st.text(max_size=schema["maxLength"])
    if name == "integer":
        return st.integers(schema["minimum"], schema["maximum"])
    if name == "number":
        step = schema["multipleOf"]
        low, high = round(schema["minimum"] / step), round(schema["maximum"] / step)
        return st.integers(low, high).map(lambda count: round(count * step, STEPS[step]))
    return st.booleans()
