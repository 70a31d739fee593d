"""JSON values into frozen dataclasses, strictly: a missing key, an unknown key or a wrong type is an error naming its place.

The dataclass is the schema. Understood: dataclasses, str, int, float, bool, None, X | Y, tuple[T, ...], tuple[T, U] and
dict[str, T]. Of a union of dataclasses an object is the one whose keys it has.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class TypedJsonError(ValueError):
    """A JSON value does not have the declared shape."""


def dataclass_from_json(cls: type[T], value: object, where: str) -> T:
    """Build `cls` from a decoded JSON object. Raises TypedJsonError naming the place below `where`."""
    result = _convert(cls, value, where)
    assert isinstance(result, cls)
    return result


def _convert(expected: Any, value: object, where: str) -> object:
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        return _convert_dataclass(expected, value, where)
    origin = get_origin(expected)
    if origin is tuple:
        return _convert_tuple(get_args(expected), value, where)
    if origin is dict:
        entries = _require(value, dict, where)
        return {str(key): _convert(get_args(expected)[1], item, f"{where}.{key}") for key, item in entries.items()}
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(expected), value, where)
    return _convert_scalar(expected, value, where)


def _convert_dataclass(cls: type, value: object, where: str) -> object:
    entries = _require(value, dict, where)
    hints = get_type_hints(cls)
    unknown = sorted(set(entries) - set(hints))
    if unknown:
        raise TypedJsonError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(hints)}")
    missing = [name for name in hints if name not in entries]
    if missing:
        raise TypedJsonError(f"{where}: key {missing[0]!r} is missing")
    return cls(**{name: _convert(hint, entries[name], f"{where}.{name}") for name, hint in hints.items()})


def _convert_tuple(args: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    items = _require(value, list, where)
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(items)
    if len(items) != len(args):
        raise TypedJsonError(f"{where}: expected {len(args)} values, found {len(items)}")
    return tuple(_convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, items, strict=True)))


def _convert_union(args: tuple[Any, ...], value: object, where: str) -> object:
    schemas = [arg for arg in args if dataclasses.is_dataclass(arg)]
    if type(value) is dict and schemas:  # the nearest one, so that an error names the key that is wrong
        return _convert(min(schemas, key=lambda schema: len(set(get_type_hints(schema)) ^ set(value))), value, where)
    for arg in args:
        try:
            return _convert(arg, value, where)
        except TypedJsonError:
            continue
    names = " or ".join(getattr(arg, "__name__", str(arg)) for arg in args)
    raise TypedJsonError(f"{where}: expected {names}, found {value!r:.80}")


def _convert_scalar(expected: Any, value: object, where: str) -> object:
    if expected is float and type(value) is int:
        return float(value)
    return _require(value, expected, where)


def _require(value: object, expected: type, where: str) -> Any:
    # type(), not isinstance(): True is an int to Python, but not to a schema
    if type(value) is not expected:
        raise TypedJsonError(f"{where}: expected {expected.__name__}, found {value!r:.80}")
    return value


def json_from_dataclass(value: object) -> Any:
    """The JSON value that `dataclass_from_json` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_from_dataclass(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: json_from_dataclass(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [json_from_dataclass(item) for item in value]
    return value
