"""JSON files come in with errors that name the file, and go out whole: beside it first, then renamed."""

from __future__ import annotations

import json
from pathlib import Path

from drivekd.errors import DataError
from drivekd.files import write_whole


def read_json(path: Path) -> object:
    """Parse a JSON file. Raises DataError for a missing, empty, truncated or otherwise invalid file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: file cannot be read ({error.strerror})") from error
    if not data.strip():
        raise DataError(f"{path}: file is empty ({len(data)} bytes); expected JSON")
    try:
        value: object = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); expected JSON") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON, perhaps cut off ({error})") from error
    return value


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, whole or not at all; makes the folder. Raises DataError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; makes its folder. Raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise DataError(f"{path}: file cannot be written ({error.strerror})") from error


def json_type(value: object) -> str:
    """The JSON name of a value's type, for error messages."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
