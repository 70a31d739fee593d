"""Values one at a time: the same as json.loads whatever falls on a window's edge, and errors with the file and the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.data.readers import json_stream
from drivekd.data.readers.json_stream import elements, member_elements, members
from drivekd.errors import DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "a.json"


@settings(max_examples=150, deadline=None)
@given(values=st.lists(JSON, max_size=5), piece=st.integers(1, 9), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_elements_are_json_loads_whatever_the_window(
    file: Path, values: list[object], piece: int, indent: int | None, ascii_only: bool
) -> None:
    file.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_PIECE", piece)
        assert [element.value for element in elements(file)] == values


@settings(max_examples=50, deadline=None)
@given(values=st.dictionaries(st.text(), JSON, max_size=5), piece=st.integers(1, 9))
def test_members_are_json_loads_whatever_the_window(file: Path, values: dict[str, object], piece: int) -> None:
    file.write_text(json.dumps(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_PIECE", piece)
        assert dict(members(file)) == values


def test_the_elements_of_a_member(file: Path) -> None:
    file.write_text(json.dumps({"info": {"questions": [9]}, "questions": [1, [2], {}], "more": 3}))
    assert [(element.number, element.value) for element in member_elements(file, "questions")] == [(1, 1), (2, [2]), (3, {})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[1,\n2,\n{"a": tru}]', "line 3"),
        ('[{"a": "b"},\n{"a": "b', "perhaps cut off (line 2"),
        ("[1 2]", "expected , or ], found '2'"),
        ("[1] [2]", "something follows the array"),
        ("[" * 100_000, "recursion"),
        (f"[{'9' * 5000}]", "digits"),
        ("[1,]", "line 1"),
    ],
)
def test_what_is_no_json_is_named_with_its_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(DataError, match=r"a\.json: not valid JSON") as raised:
        list(elements(file))
    assert message in str(raised.value)


def test_a_file_much_larger_than_the_window_is_never_held(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_PIECE", 1 << 12)
    file.write_text(json.dumps([{"n": n, "text": "x" * 100} for n in range(5_000)], indent=1))
    widest = 0
    read = json_stream.JsonCursor._read_on

    def watched(self: json_stream.JsonCursor) -> bool:
        nonlocal widest
        more = read(self)
        widest = max(widest, len(self._text))
        return more

    monkeypatch.setattr(json_stream.JsonCursor, "_read_on", watched)
    assert [element.value["n"] for element in elements(file)] == list(range(5_000))  # type: ignore[index]
    assert widest < 3 << 12


@pytest.mark.parametrize("lines", [False, True])
def test_a_key_that_stands_twice_is_named_with_its_record(file: Path, lines: bool) -> None:
    """Python's json keeps the last alone, so half of what the user wrote would be lost without a word."""
    sound, doubled = '{"a": 1, "b": [{"a": 2}]}', '{"a": 1, "b": [{"c": 2, "c": 2}]}'
    file = file.with_suffix(".jsonl" if lines else ".json")
    file.write_text(f"{sound}\n{doubled}\n{sound}" if lines else f"[{sound}, {doubled}, {sound}]", encoding="utf-8")
    assert [element.fault for element in elements(file)] == ["", "key 'c' stands twice in one object: which one holds?", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"one": {"a": 1}, "two": {"a": 1, "a": 2}}', "two: key 'a' stands twice in one object"),
        ('{"one": {"a": 1}, "one": {"a": 1}}', "key 'one' stands twice in one object"),
    ],
)
def test_a_key_that_stands_twice_among_members_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        dict(members(file))
