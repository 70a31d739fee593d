"""Schemas of structured answers: read strictly, and judged without a library on the car."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from structured_cases import ANSWERS

from drivekd.errors import BundleError
from drivekd.runtime.answers.schemas import ACTIONS, default_schemas, schemas_from_bytes, schemas_to_bytes, valid_answer

CAMERAS = ("CAM_FRONT", "CAM_BACK")


@pytest.mark.parametrize("cameras", [(), CAMERAS])
def test_the_default_schemas_come_back_from_their_bytes(cameras: tuple[str, ...]) -> None:
    schemas = default_schemas(cameras)
    again = schemas_from_bytes(schemas_to_bytes(schemas), "bundle")
    assert again == schemas
    assert list(again) == ["perception", "reasoning", "planning"]
    for capability, schema in schemas.items():  # order is meaning: the model writes in it
        assert list(again[capability]["properties"]) == list(schema["properties"])


@pytest.mark.parametrize("capability", ["perception", "reasoning", "planning"])
def test_an_answer_is_valid(capability: str) -> None:
    schema = default_schemas(CAMERAS)[capability]
    assert valid_answer(schema, ANSWERS[capability]) is None
    nothing = dict.fromkeys(schema["properties"]) | {"complete": False}
    assert valid_answer(schema, nothing) is None


@pytest.mark.parametrize(
    ("capability", "path", "value", "fault"),
    [
        ("planning", ["actions"], ["fly"], r"answer\.actions\[0\]: 'fly' is none of keep_speed"),
        ("planning", ["actions"], [], r"answer\.actions: 0 items, allowed are 1 to 3"),
        ("planning", ["actions"], list(ACTIONS[:4]), "4 items, allowed are 1 to 3"),
        ("planning", ["actions"], [None], "null is not allowed"),
        ("planning", ["actions"], ["stop", "yield", "stop"], r"answer\.actions\[2\]: 'stop' is in the set already"),
        ("planning", ["probability"], 1.5, r"answer\.probability: 1\.5 is not within 0 to 1"),
        ("planning", ["probability"], float("nan"), "nan is not within"),
        ("planning", ["probability"], 0.125, r"0\.125 is no multiple of 0\.01"),
        ("planning", ["probability"], True, "expected number, found True"),
        ("planning", ["reason"], "x" * 121, "121 characters, the longest is 120"),
        ("planning", ["reason"], 3, r"answer\.reason: expected string, found 3"),
        ("planning", ["complete"], None, r"answer\.complete: null is not allowed"),
        ("planning", ["complete"], 1, "expected boolean, found 1"),
        ("perception", ["objects", 0, "camera"], "CAM_SIDE", "'CAM_SIDE' is none of CAM_FRONT, CAM_BACK"),
        ("perception", ["objects", 0, "position"], [1], r"answer\.objects\[0\]\.position: 1 items, allowed are 2 to 2"),
        ("perception", ["objects", 0, "position"], [1, 2.5], r"position\[1\]: expected integer, found 2\.5"),
        ("perception", ["objects", 0, "position"], [1, -1], r"-1 is not within 0 to 9999"),
        (
            "perception",
            ["objects", 0],
            {"camera": None},
            "expected the properties camera, position, category, status; found camera",
        ),
        ("perception", ["objects"], {}, "expected array, found {}"),
    ],
)
def test_a_fault_names_its_place(capability: str, path: list[Any], value: object, fault: str) -> None:
    answer: Any = copy.deepcopy(ANSWERS[capability])
    *parents, last = path
    part = answer
    for step in parents:
        part = part[step]
    part[last] = value
    assert_fault(capability, answer, fault)


def assert_fault(capability: str, answer: object, fault: str) -> None:
    found = valid_answer(default_schemas(CAMERAS)[capability], answer)
    assert found is not None
    with pytest.raises(ValueError, match=fault):
        raise ValueError(found)


def test_the_order_of_properties_counts() -> None:
    answer = dict(reversed(ANSWERS["planning"].items()))
    assert_fault("planning", answer, "expected the properties actions, reason, probability, complete; found complete")
    assert_fault("planning", [], "answer: expected object")


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def answer_of(part: Any) -> dict[str, Any]:
    return object_of(part=part, complete={"type": "boolean"})


TEXT = {"type": ["string", "null"], "maxLength": 4}
SET = {"type": ["array", "null"], "items": {"enum": ["a", "b", "c", "d"]}, "maxItems": 3, "uniqueItems": True}


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        (TEXT, "null must be impossible here"),
        ({"type": "string", "maxLength": 4}, ": an answer is an object"),
        ([], "expected a schema"),
        ({}, "type None; known are object, array"),
        (object_of(part=TEXT), "last property must be 'complete', a boolean"),
        (object_of(complete={"type": "boolean"}, part=TEXT), "last property must be 'complete'"),
        ({**answer_of(TEXT), "required": ["complete", "part"]}, "every property must be required, in the order"),
        ({**answer_of(TEXT), "required": ["part"]}, "every property must be required"),
        ({**answer_of(TEXT), "additionalProperties": True}, "additionalProperties must be false"),
        (answer_of({"type": "string", "maxLength": 4}), r"part: null must be possible here"),
        (answer_of({**TEXT, "pattern": "a*"}), r"keyword 'pattern' of string is not understood"),
        (answer_of({"type": ["string", "null"]}), "expected a maxLength of at most 1000"),
        (answer_of({**TEXT, "maxLength": 1001}), "expected a maxLength of at most 1000"),
        (answer_of({**TEXT, "maxLength": True}), "expected a maxLength"),
        (answer_of({"type": ["null", "string"], "maxLength": 4}), r"type \['null', 'string'\]"),
        (answer_of({"type": ["string", "integer"]}), r"each alone or in a list before 'null'"),
        (answer_of({"type": [[]]}), r"type \[\[\]\]"),
        (answer_of({"type": ["integer", "null"], "minimum": 0}), "expected integers as minimum and maximum"),
        (answer_of({"type": ["integer", "null"], "minimum": 0, "maximum": 0.5}), "expected integers as minimum and maximum"),
        (answer_of({"type": ["number", "null"], "minimum": 2, "maximum": 1}), "expected numbers as minimum and maximum"),
        (answer_of({"type": ["number", "null"], "minimum": 0, "maximum": float("inf")}), "expected numbers"),
        (answer_of({"type": ["number", "null"], "minimum": 0, "maximum": 1}), r"expected a multipleOf of 0\.1, 0\.01"),
        (answer_of({"type": ["number", "null"], "minimum": 0, "maximum": 1, "multipleOf": 0.3}), "expected a multipleOf"),
        (answer_of({"enum": ["a", "a", None]}), "an enum of different strings"),
        (answer_of({"enum": [None]}), "an enum of different strings"),
        (answer_of({"enum": ["a", 1, None]}), "an enum of different strings"),
        (answer_of({"enum": ["a"]}), r"null must be possible"),
        (answer_of({"type": ["string", "null"], "enum": ["a", None]}), "an enum states no type"),
        (answer_of({"type": ["array", "null"], "items": TEXT, "maxItems": 2}), r"part\[\]: null must be impossible here"),
        (answer_of({"type": ["array", "null"], "maxItems": 2}), r"part\[\]: expected a schema"),
        (answer_of({"type": ["array", "null"], "items": {"type": "boolean"}}), "maxItems <= 100"),
        (
            answer_of({"type": ["array", "null"], "items": {"type": "boolean"}, "minItems": 3, "maxItems": 2}),
            "minItems <= maxItems",
        ),
        (answer_of({**TEXT, "format": "date"}), "format 'date' is not understood; known is 'camera'"),
        (answer_of({**SET, "uniqueItems": 1}), "uniqueItems must be true"),
        (answer_of({**SET, "items": {"enum": 3}}), "an enum of different strings"),
        (answer_of({**SET, "maxItems": 5}), "uniqueItems of 5 in 4: expected no more than there are"),
        (answer_of({**SET, "items": {"enum": [*map(str, range(40))]}}), "uniqueItems of 3 in 40: .*at most 1000 orders"),
        (answer_of({**SET, "items": {"type": "boolean"}}), "uniqueItems are of an enum, or of objects"),
        (answer_of({**SET, "items": object_of(inner=TEXT), "minItems": 2}), "of objects with minItems of at most 1"),
        (answer_of({**object_of(inner={"type": "boolean"}), "type": ["object", "null"]}), r"part\.inner: null must be possible"),
        (answer_of({**object_of(), "type": ["object", "null"]}), "every property must be required"),
    ],
)
def test_what_the_subset_has_not_is_refused(schema: Any, fault: str) -> None:
    with pytest.raises(BundleError, match=rf"^bundle: schemas\.json: planning.*{fault}"):
        schemas_from_bytes(json.dumps({"planning": schema}).encode(), "bundle")


def test_a_schema_without_end_is_refused() -> None:
    schema: Any = {"type": "boolean"}
    for _ in range(12):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    with pytest.raises(BundleError, match="at most 8 deep"):
        schemas_from_bytes(json.dumps({"a": answer_of({**schema, "type": ["array", "null"]})}).encode(), "bundle")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"])
def test_a_file_that_is_no_json(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"schemas\.json"):
        schemas_from_bytes(data, "bundle")


def test_a_file_of_another_shape() -> None:
    with pytest.raises(BundleError, match="expected an object of schemas by capability"):
        schemas_from_bytes(b"[]", "bundle")
