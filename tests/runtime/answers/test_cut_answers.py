"""An answer cut anywhere closes to a valid one that says nothing new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structured_cases import ANSWERS, answers

from drivekd.errors import RunnerError
from drivekd.runtime.answers.cut_answers import close_answer, structured_answer
from drivekd.runtime.answers.schemas import Schema, default_schemas, valid_answer

CAMERAS = ("CAM_FRONT", "CAM_BACK")
SCHEMAS = default_schemas(CAMERAS)
TEXT = {"type": ["string", "null"], "maxLength": 8}
INNER = {"a": TEXT, "b": {"type": ["boolean", "null"]}}


def object_of(properties: dict[str, Any], nullable: bool = True) -> Schema:
    kind: Any = ["object", "null"] if nullable else "object"
    return {"type": kind, "properties": properties, "required": list(properties), "additionalProperties": False}


# What the default schemas have not: an object in an object, an array in an array, booleans, a property after an array
NESTED = object_of(
    {
        "place": object_of(INNER),
        "rows": {
            "type": ["array", "null"],
            "items": {"type": "array", "items": {"type": "integer", "minimum": -99, "maximum": 99}, "minItems": 1, "maxItems": 3},
            "maxItems": 3,
        },
        "flag": {"type": ["boolean", "null"]},
        "share": {"type": ["number", "null"], "minimum": -1e6, "maximum": 1e6, "multipleOf": 0.001},
        "complete": {"type": "boolean"},
    },
    nullable=False,
)
ALL = {**SCHEMAS, "nested": NESTED}

Path: TypeAlias = tuple[str | int, ...]


def compact(value: object, ascii_only: bool = False) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every scalar that is not null, and every array that has no item."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    elif value is not None and path != ("complete",):
        yield path, value


def ends(value: Any, ascii_only: bool) -> dict[Path, int]:
    """Where in the compact text each leaf has been said in full: a number with the sign behind it, since it might go on."""
    found: dict[Path, int] = {}
    text = ""

    def write(part: Any, path: Path) -> None:
        nonlocal text
        if isinstance(part, dict):
            text += "{"
            for index, (key, item) in enumerate(part.items()):
                text += ("," if index else "") + compact(key, ascii_only) + ":"
                write(item, (*path, key))
            text += "}"
        elif isinstance(part, list):
            text += "["
            for index, item in enumerate(part):
                text += "," if index else ""
                write(item, (*path, index))
            text += "]"
        else:
            text += compact(part, ascii_only)
        found[path] = len(text) + (not isinstance(part, (str, dict, list)))

    write(value, ())
    assert text == compact(value, ascii_only), "the slow writer writes what json writes"
    return found


def assert_every_cut_closes(schema: Schema, answer: dict[str, Any], ascii_only: bool) -> None:
    text, said, known = compact(answer, ascii_only), ends(answer, ascii_only), dict(leaves(answer))
    for cut in range(len(text) + 1):
        closed = close_answer(schema, text[:cut])
        assert valid_answer(schema, closed) is None
        assert closed["complete"] is (cut == len(text))
        assert_says_no_more_and_no_less(schema, closed, said, known, cut)


def assert_says_no_more_and_no_less(
    schema: Schema, closed: dict[str, Any], said: dict[Path, int], known: dict[Path, Any], cut: int
) -> None:
    for path, value in leaves(closed):
        assert path in known and known[path] == value and type(known[path]) is type(value), f"{path} was invented"
        assert said[path] <= cut, f"{path} was cut"
    kept = dict(leaves(closed))
    whole = {path: value for path, value in known.items() if said[path] <= cut and not in_short_array(schema, said, cut, path)}
    for path in whole:
        assert path in kept or is_repeated(schema, whole, path), f"{path} was lost"


def is_repeated(schema: Schema, whole: dict[Path, Any], path: Path) -> bool:
    """Whether the leaf lies in an object of a set that, as far as it was said, says what an earlier one says."""
    name, index = path[:2]
    items = [{leaf[2:]: value for leaf, value in whole.items() if leaf[:2] == (name, i)} for i in range(int(index) + 1)]
    return schema["properties"][name].get("uniqueItems", False) and items[-1] in items[:-1]


def in_short_array(schema: Any, said: dict[Path, int], cut: int, path: Path) -> bool:
    """Whether the leaf lies in an array that was cut and wants a number of items: half a position is none."""
    for length, step in enumerate(path):
        if "items" in schema:
            if schema.get("minItems", 0) > 1 and said[path[:length]] > cut:
                return True
            schema = schema["items"]
        else:
            schema = schema["properties"][step]
    return False


@pytest.mark.parametrize("name", list(ALL))
@given(data=st.data(), ascii_only=st.booleans())
@settings(max_examples=15, deadline=None)
def test_every_cut_of_every_answer_closes(name: str, data: st.DataObject, ascii_only: bool) -> None:
    answer = data.draw(answers(ALL[name]))
    assert_every_cut_closes(ALL[name], answer, ascii_only)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("capability", list(ANSWERS))
def test_every_single_cut_of_an_example(capability: str, ascii_only: bool) -> None:
    answer = ANSWERS[capability]
    assert_every_cut_closes(SCHEMAS[capability], answer, ascii_only)


@pytest.mark.parametrize("name", list(ALL))
@given(text=st.text() | st.text(alphabet='{}[]:,"\\truefalsn01.-e ab', max_size=40))
@example(text='{"actions":["slow_down"]]')
@example(text='{"actions":[["slow_down"],')
@example(text='{"reason":"x","actions":"stop","complete":true}')
@example(text='{"actions":["stop"],"reason":1e999,')
@example(text="[" * 100_000)
@settings(deadline=None)
def test_any_text_at_all_closes(name: str, text: str) -> None:
    assert valid_answer(ALL[name], close_answer(ALL[name], text)) is None


@given(data=st.data())
def test_closing_twice_changes_nothing(data: st.DataObject) -> None:
    text = compact(data.draw(answers(SCHEMAS["perception"])))
    closed = close_answer(SCHEMAS["perception"], text[: data.draw(st.integers(0, len(text)))])
    assert close_answer(SCHEMAS["perception"], compact(closed)) == closed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ('{"actions":[', {}),  # not "no action": nothing is known
        ('{"actions":["slow_down', {}),
        ('{"actions":["slow_down"', {"actions": ["slow_down"]}),
        ('{"actions":["slow_down","st', {"actions": ["slow_down"]}),
        ('{"actions":["slow_down"],"reason":"the v', {"actions": ["slow_down"]}),
        ('{"actions":["slow_down"],"reason":"say \\"', {"actions": ["slow_down"]}),
        ('{"actions":null,"reason":"a","probability":0.', {"reason": "a"}),
        ('{"actions":null,"reason":"a","probability":0', {"reason": "a"}),  # might become 0.9
        ('{"actions":null,"reason":"a","probability":0,', {"reason": "a", "probability": 0}),
        ('{"actions":null,"reason":"a","probability":0,"complete":true', {"reason": "a", "probability": 0}),
    ],
)
def test_planning_never_invents_an_action(text: str, expected: dict[str, Any]) -> None:
    nothing = {"actions": None, "reason": None, "probability": None, "complete": False}
    assert close_answer(SCHEMAS["planning"], text) == {**nothing, **expected}


def test_an_object_that_was_begun_is_kept_with_what_it_has() -> None:
    text = '{"objects":[{"camera":"CAM_FRONT","position":[812,'
    found = {"camera": "CAM_FRONT", "position": None, "category": None, "status": None}
    assert close_answer(SCHEMAS["perception"], text) == {"objects": [found], "complete": False}
    assert close_answer(SCHEMAS["perception"], text[: text.index("FRONT")])["objects"] is None
    assert close_answer(SCHEMAS["perception"], '{"objects":[],"c')["objects"] == [], "the model said that there is none"


def test_an_object_that_comes_again_is_left_out() -> None:
    """What SmolLM2-135M-Instruct said of a road."""
    axel, text = {"object": "Axel", "state": "active", "effect": "Axel"}, ""
    said = compact({"objects": [axel, axel, {**axel, "effect": None}], "complete": True})
    text, answer, complete = structured_answer(SCHEMAS["reasoning"], said, "stop")
    assert answer == {"objects": [axel, {**axel, "effect": None}], "complete": True}
    assert json.loads(text) == answer
    assert complete
    cut = close_answer(SCHEMAS["reasoning"], said[:-30])
    assert cut == {"objects": [axel, {**axel, "effect": None}], "complete": False}


def test_a_structured_answer_is_compact_and_says_whether_it_ended() -> None:
    answer = ANSWERS["perception"]
    text = compact(answer)
    assert structured_answer(SCHEMAS["perception"], text, "stop") == (text, answer, True)
    cut = text[: text.index("überholt")]
    closed_text, closed, complete = structured_answer(SCHEMAS["perception"], cut, "deadline")
    assert not complete
    assert json.loads(closed_text) == closed
    assert closed_text == compact(closed)
    assert structured_answer(SCHEMAS["perception"], "", "cancelled")[0] == '{"objects":null,"complete":false}'


def test_an_ended_answer_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(RunnerError, match="does not fit its schema"):
        structured_answer(SCHEMAS["planning"], "Brake to a stop.", "stop")
