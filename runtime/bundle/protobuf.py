"""Protobuf's wire format, as far as reading needs it: numbered fields that are varints or byte strings.

Strict where protobuf is lenient: a field that is longer than its message, or of another kind than the caller wants, is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

MAX_VARINT_BITS = 70

Value: TypeAlias = int | memoryview  # a varint, or the bytes of anything else


class BrokenProtobufError(ValueError):
    """The bytes are no protobuf message of the expected kind."""


def messages(data: Value, *path: int) -> list[memoryview]:
    """All messages at a path of field numbers."""
    found = [message(data)]
    for wanted in path:
        found = [message(value) for item in found for key, value in fields(item) if key == wanted]
    return found


def text(data: Value, wanted: int) -> str:
    """The last string of that field, "" when there is none: protobuf's rule."""
    values = [value for key, value in fields(message(data)) if key == wanted]
    return string(values[-1]) if values else ""


def last_number(data: Value, wanted: int) -> int:
    """A varint field: its last value, 0 when there is none: protobuf's rule."""
    values = [value for key, value in fields(message(data)) if key == wanted]
    return number(values[-1]) if values else 0


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Field number and value: a varint as a number, a length-delimited field as a view; fixed-width numbers as views too."""
    position, end = 0, len(data)
    while position < end:
        key, position = _read_varint(data, position)
        place, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _read_varint(data, position)
            yield place, value
            continue
        if wire == 2:
            size, position = _read_varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise BrokenProtobufError(f"wire type {wire}")
        if place == 0 or size > end - position:
            raise BrokenProtobufError("a field is longer than the file, or has no number")
        yield place, data[position : position + size]
        position += size


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while position < len(data) and shift < MAX_VARINT_BITS:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
    raise BrokenProtobufError("a number does not end")


def packed(data: memoryview) -> list[int]:
    """A packed repeated field: varints one behind the other."""
    position, values = 0, []
    while position < len(data):
        value, position = _read_varint(data, position)
        values.append(value)
    return values


def number(value: Value) -> int:
    """A varint field. Raises BrokenProtobufError when the bytes are of another kind."""
    if not isinstance(value, int):
        raise BrokenProtobufError("expected a number")
    return value


def message(value: Value) -> memoryview:
    """A length-delimited field. Raises BrokenProtobufError when it is a varint."""
    if isinstance(value, int):
        raise BrokenProtobufError("expected a message")
    return value


def string(value: Value) -> str:
    """UTF-8. Raises BrokenProtobufError when it is a varint, UnicodeDecodeError when it is no text."""
    return bytes(message(value)).decode()
