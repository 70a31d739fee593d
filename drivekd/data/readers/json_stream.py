"""JSON files a piece at a time: an array or an object larger than memory, JSON Lines, and gzip of each.

One value is parsed at a time, by the standard library's C scanner over a window that moves through the file; the window grows
only as large as the largest value. Gzip is known by its first bytes, JSON Lines by a name that ends in .jsonl or .ndjson (before
.gz) or by a first line that is a whole object with another behind it. Every error names the file and, where it has one, the line.

Not ijson: its C parser (yajl 2, ijson 3.6) reads half a character as "?" and no number above 64 bits, both without a word or as a
fault of the whole file; a record that holds one must be named.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TextIO, cast

from drivekd.errors import DataError

Shape = Literal["array", "object", "lines", "other"]
_PIECE = 1 << 20  # characters
_CUT = 16  # an error so near to the end of the window may be the window's: the longest token that is no string has 12 characters


@dataclass(frozen=True)
class Element:
    """number: from 1. value: parsed. fault: why a line of JSON Lines is no JSON, or which key an object of it has twice; else
    empty."""

    number: int
    value: object
    fault: str = ""


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file, unpacked when it is gzip. Raises DataError for everything that goes wrong while it is read."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            inner = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            with io.TextIOWrapper(inner, encoding="utf-8-sig", newline="\n") as text:
                yield text
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start} of a piece: {error.reason}); expected JSON") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: gzip file is cut off or broken ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: file cannot be read ({error.strerror or error})") from error


class JsonCursor:
    """A place in a JSON text that moves forward, value by value."""

    def __init__(self, text: TextIO, path: Path) -> None:
        self._file, self._path = text, path
        self._text, self._at = "", 0
        self._lines = 0  # line breaks before the window
        self._ended = False
        self._decoder, self._doubled = _decoder()

    def peek(self) -> str:
        """The next character that is no blank, "" at the end of the file."""
        while True:
            rest = self._at
            while rest < len(self._text) and self._text[rest] in " \t\n\r":
                rest += 1
            self._at = rest
            if rest < len(self._text) or not self._read_on():
                return self._text[rest : rest + 1]

    def take(self, expected: str) -> str:
        """Step over the next character, which must be one of `expected`."""
        found = self.peek()
        if not found or found not in expected:
            raise self._error(f"expected {' or '.join(expected)}, found {repr(found) if found else 'the end of the file'}")
        self._at += 1
        return found

    def value(self) -> object:
        """Parse the next value; `twice` then tells what it holds twice."""
        self.peek()
        while True:
            self._doubled.clear()
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._read_on():
                    continue
                raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a thousand brackets
                raise self._error(str(error)) from error
            if end >= len(self._text) - _CUT and not isinstance(value, str | list | dict) and self._read_on():  # "0." may go on
                continue
            self._at = end
            return cast(object, value)

    @property
    def twice(self) -> str:
        """Which key an object of the last value has twice, of which Python's json would keep the last alone; else empty."""
        return _told_twice(self._doubled)

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT

    def _read_on(self) -> bool:
        """Drop what is behind the cursor and read the next piece; False, and nothing changed, at the end of the file."""
        if self._ended:
            return False
        piece = self._file.read(max(_PIECE, len(self._text) - self._at))
        if not piece:
            self._ended = True
            return False
        self._lines += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + piece, 0
        return True

    def _error(self, message: str, position: int | None = None) -> DataError:
        line = self._lines + self._text.count("\n", 0, self._at if position is None else position) + 1
        return DataError(f"{self._path}: not valid JSON, perhaps cut off (line {line}: {message})")


def _decoder() -> tuple[json.JSONDecoder, list[str]]:
    """A decoder, and where it puts each key that an object has twice."""
    doubled: list[str] = []

    def made(pairs: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(pairs)
        if len(value) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            doubled.extend(key for key, count in counts.items() if count > 1)
        return value

    return json.JSONDecoder(object_pairs_hook=made), doubled


def _told_twice(doubled: list[str]) -> str:
    return f"key {doubled[0]!r} stands twice in one object: which one holds?" if doubled else ""


def shape(path: Path) -> Shape:
    """What a file holds at its top. Raises DataError for an empty or unreadable file."""
    with open_text(path) as text:
        first = JsonCursor(text, path).peek()
    if not first:
        raise DataError(f"{path}: file is empty ({path.stat().st_size} bytes); expected JSON")
    if first == "{" and _is_lines(path):
        return "lines"
    return {"[": "array", "{": "object"}.get(first, "other")  # type: ignore[return-value]


def _is_lines(path: Path) -> bool:
    if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        return True
    with open_text(path) as text:
        first, second = (_next_line(text) for _ in range(2))
    try:
        return second.startswith("{") and isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _next_line(text: TextIO) -> str:
    """The next line that is not blank, cut at one piece; empty at the end."""
    while line := text.readline(_PIECE):
        if line.strip():
            return line.strip()
    return ""


def elements(path: Path) -> Iterator[Element]:
    """The elements of an array, or the lines of JSON Lines, in order. Raises DataError where the file ends or breaks off."""
    return _lines(path) if shape(path) == "lines" else _array(path)


def _array(path: Path) -> Iterator[Element]:
    with open_text(path) as text:
        cursor = JsonCursor(text, path)
        yield from _elements(cursor)
        if cursor.peek():
            raise DataError(f"{path}: not valid JSON: something follows the array that the file is")


def _elements(cursor: JsonCursor) -> Iterator[Element]:
    cursor.take("[")
    number = 0
    if cursor.peek() == "]":
        cursor.take("]")
        return
    while True:
        number += 1
        value = cursor.value()
        yield Element(number, value, cursor.twice)
        if cursor.take(",]") == "]":
            return


def _lines(path: Path) -> Iterator[Element]:
    with open_text(path) as text:
        number, (decoder, doubled) = 0, _decoder()
        for line in text:
            if not line.strip():
                continue
            number += 1
            doubled.clear()
            try:
                value = decoder.decode(line)
            except (ValueError, RecursionError) as error:
                yield Element(number, None, f"not valid JSON ({error})")
            else:
                yield Element(number, value, _told_twice(doubled))


def members(path: Path, *, whole: bool = True) -> Iterator[tuple[str, object]]:
    """Key and value of each member of the object that a file is, one value in memory at a time.

    whole: False gives an array's value as an empty list, and stops there: what an array holds is for `member_elements`.
    """
    with open_text(path) as text:
        cursor = JsonCursor(text, path)
        for key in _keys(cursor, path):
            if not whole and cursor.peek() == "[":
                yield key, []
                return
            value = cursor.value()
            if cursor.twice:
                raise DataError(f"{path}: {key}: {cursor.twice}")
            yield key, value


def member_elements(path: Path, wanted: str) -> Iterator[Element]:
    """The elements of the array that stands under the key `wanted` of the object that a file is."""
    with open_text(path) as text:
        cursor = JsonCursor(text, path)
        for key in _keys(cursor, path):
            if key == wanted:
                yield from _elements(cursor)
            else:
                cursor.value()


def _keys(cursor: JsonCursor, path: Path) -> Iterator[str]:
    """Each key of the object at the cursor, once; the caller takes the value before it asks for the next."""
    cursor.take("{")
    if cursor.peek() == "}":
        return
    seen = set[str]()
    while True:
        if cursor.peek() != '"':
            cursor.take('"')
        key = str(cursor.value())
        if key in seen:
            raise DataError(f"{path}: {_told_twice([key])}")
        seen.add(key)
        cursor.take(":")
        yield key
        if cursor.take(",}") == "}":
            return
