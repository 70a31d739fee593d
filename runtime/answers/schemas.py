"""What a structured answer looks like: one schema a capability, kept in the bundle as schemas.json.

A schema is a small subset of JSON Schema, so that an answer has an end and can be closed at any moment:

    object           every property required, in this order, no other ones
    array            maxItems, perhaps minItems; uniqueItems: a set, of an enum or of objects
    string           maxLength, or an enum of strings; "format": "camera" is the name of one of the frame's cameras
    integer          minimum and maximum
    number           these and multipleOf, a power of ten: or its digits would have no end
    boolean

Every property may be null ("type": ["string", "null"], or null in its enum) but the last of the top level, `complete`: whether
the model itself came to the end of the answer. Items of an array are never null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from drivekd.errors import BundleError

SCHEMAS_FILE = "schemas.json"
COMPLETE = "complete"

Schema: TypeAlias = dict[str, Any]

# A schema beyond these is no short answer, and compiling its grammar would take long.
MAX_ITEMS, MAX_LENGTH, MAX_DEPTH = 100, 1000, 8
STEPS = {1 / 10**digits: digits for digits in range(1, 7)}  # multipleOf: decimals
MAX_PX = 9999  # no camera of a car has more columns
MAX_ORDERS = 1000  # of the items of a set before its last: a grammar writes them all out (ten actions, three of them: 101; 7 ms)
CAMERA = "camera"

CATEGORIES = (
    *("car", "van", "truck", "bus", "trailer", "motorcycle", "bicycle", "pedestrian", "animal"),
    *("traffic_light", "traffic_sign", "barrier", "traffic_cone", "debris", "other"),
)
ACTIONS = (
    *("keep_speed", "accelerate", "slow_down", "stop", "keep_lane", "change_lane_left", "change_lane_right"),
    *("turn_left", "turn_right", "yield"),
)

_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems", "uniqueItems"},
    "string": {"maxLength", "format"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum", "multipleOf"},
    "boolean": set[str](),
    "enum": {"enum"},
}
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def default_schemas(cameras: Sequence[str]) -> dict[str, Schema]:
    """The schemas of the three capabilities. cameras: the bundle's, () = those that a frame has.

    perception: objects with camera, position [x, y] in px of that camera's picture, category and status. reasoning: objects with
    state and effect on the ego vehicle, the most important first. planning: actions (a set; most urgent first), reason, and the
    probability, 0 to 1, that they are right, as the model says it (not calibrated). No object and no action comes twice.
    """
    camera = _choice(cameras) if cameras else {**_text(40), "format": CAMERA}
    seen = {"camera": camera, "position": _position(), "category": _choice(CATEGORIES), "status": _text(40)}
    thought = {"object": _text(60), "state": _text(60), "effect": _text(120)}
    planned = {"actions": _set(_choice(ACTIONS, nullable=False), 3, at_least=1), "reason": _text(120), "probability": _share()}
    return {
        "perception": _answer({"objects": _set(_object(seen), 8)}),
        "reasoning": _answer({"objects": _set(_object(thought), 4)}),
        "planning": _answer(planned),
    }


def schemas_to_bytes(schemas: Mapping[str, Schema]) -> bytes:
    """The bytes of schemas.json."""
    return (json.dumps(schemas, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def schemas_from_bytes(data: bytes, source: str) -> dict[str, Schema]:
    """Read schemas.json. Raises BundleError naming the place of what this drivekd does not understand."""
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: {SCHEMAS_FILE} is not valid JSON ({error})") from error
    if type(value) is not dict:
        raise BundleError(f"{source}: {SCHEMAS_FILE}: expected an object of schemas by capability, found {value!r:.80}")
    for capability, schema in value.items():
        if (fault := next(_schema_faults(schema), None)) is not None:
            raise BundleError(f"{source}: {SCHEMAS_FILE}: {capability}{fault}. Export the checkpoint again, or update drivekd.")
    return dict(value)


def valid_answer(schema: Schema, value: object) -> str | None:
    """The first fault of an answer against its schema, naming its place; None when there is none."""
    return next(_faults(schema, value, "answer"), None)


def with_cameras(schema: Schema, cameras: Sequence[str]) -> Schema:
    """The schema about a frame of these cameras; () = not known yet, any name."""
    if not cameras:
        return schema
    if schema.get("format") == CAMERA:
        return _choice(cameras, nullable=nullable(schema))
    if "items" in schema:
        return {**schema, "items": with_cameras(schema["items"], cameras)}
    if "properties" in schema:
        return {**schema, "properties": {name: with_cameras(part, cameras) for name, part in schema["properties"].items()}}
    return schema


def without_repeats(schema: Schema, value: Any) -> Any:
    """`value` without the items of a set that an earlier one says as well. What does not fit its schema is left as it is."""
    name = kind(schema)
    if name == "object" and isinstance(value, dict):
        parts = schema["properties"]
        return {key: without_repeats(parts[key], item) if key in parts else item for key, item in value.items()}
    if name == "array" and isinstance(value, list):
        items = [without_repeats(schema["items"], item) for item in value]
        return [item for index, item in enumerate(items) if not _repeats(schema, items, index)]
    return value


def _repeats(schema: Schema, items: Sequence[object], index: int) -> bool:
    return bool(schema.get("uniqueItems")) and items[index] in items[:index]


def kind(schema: Schema) -> str:
    """ "enum", or the type: "object", "array", "string", "integer", "number", "boolean"."""
    if "enum" in schema:
        return "enum"
    declared = schema["type"]
    return str(declared if isinstance(declared, str) else declared[0])


def nullable(schema: Schema) -> bool:
    """Whether null is a value of it: what the answer did not come to."""
    return None in schema["enum"] if "enum" in schema else isinstance(schema["type"], list)


def _faults(schema: Schema, value: object, place: str) -> Iterator[str]:
    name = kind(schema)
    if value is None:
        if not nullable(schema):
            yield f"{place}: null is not allowed"
    elif name == "enum":
        if type(value) is not str or value not in schema["enum"]:
            yield f"{place}: {value!r:.80} is none of {', '.join(map(str, schema['enum']))}"
    elif type(value) not in _PYTHON_TYPES[name]:  # type(), not isinstance(): True is an int to Python, but not to a schema
        yield f"{place}: expected {name}, found {value!r:.80}"
    elif isinstance(value, dict):
        yield from _object_faults(schema, value, place)
    elif isinstance(value, list):
        yield from _array_faults(schema, value, place)
    elif isinstance(value, str):
        if len(value) > schema["maxLength"]:
            yield f"{place}: {len(value)} characters, the longest is {schema['maxLength']}"
    elif not isinstance(value, bool):
        yield from _number_faults(schema, value, place)


def _object_faults(schema: Schema, value: dict[str, object], place: str) -> Iterator[str]:
    if list(value) != list(schema["properties"]):
        yield f"{place}: expected the properties {', '.join(schema['properties'])}; found {', '.join(value) or 'none'}"
        return
    for name, property_schema in schema["properties"].items():
        yield from _faults(property_schema, value[name], f"{place}.{name}")


def _array_faults(schema: Schema, value: list[object], place: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema["maxItems"]:
        yield f"{place}: {len(value)} items, allowed are {schema.get('minItems', 0)} to {schema['maxItems']}"
    for index, item in enumerate(value):
        yield from _faults(schema["items"], item, f"{place}[{index}]")
        if _repeats(schema, value, index):
            yield f"{place}[{index}]: {item!r:.80} is in the set already"


def _number_faults(schema: Schema, value: Any, place: str) -> Iterator[str]:
    if not schema["minimum"] <= value <= schema["maximum"]:  # NaN is not, either
        yield f"{place}: {value} is not within {schema['minimum']} to {schema['maximum']}"
    elif "multipleOf" in schema and value != round(value, STEPS[schema["multipleOf"]]):
        yield f"{place}: {value} is no multiple of {schema['multipleOf']}"


def _schema_faults(schema: object) -> Iterator[str]:
    """Of a capability's whole schema."""
    yield from _part_faults(schema, "", 0, may_be_null=False)
    if not isinstance(schema, dict) or kind(schema) != "object":
        yield ": an answer is an object"
    elif list(schema["properties"])[-1:] != [COMPLETE] or schema["properties"][COMPLETE].get("type") != "boolean":
        yield f": its last property must be {COMPLETE!r}, a boolean"


def _part_faults(schema: Any, place: str, depth: int, *, may_be_null: bool) -> Iterator[str]:
    if type(schema) is not dict or depth > MAX_DEPTH:
        yield f"{place}: expected a schema at most {MAX_DEPTH} deep, found {schema!r:.80}"
        return
    declared = schema.get("type")
    if "enum" in schema and declared is not None:
        yield f"{place}: an enum states no type"
    elif "enum" not in schema and not _known_type(declared):
        yield f"{place}: type {declared!r:.80}; known are {', '.join(_PYTHON_TYPES)}, each alone or in a list before 'null'"
    elif unknown := sorted(set(schema) - _KEYWORDS[kind(schema)] - {"type", "description"}):
        yield f"{place}: keyword {unknown[0]!r} of {kind(schema)} is not understood"
    else:
        yield from _keyword_faults(kind(schema), schema, place, depth)
        if nullable(schema) != may_be_null:
            yield f"{place}: null must be {'possible' if may_be_null else 'impossible'} here"


def _known_type(declared: object) -> bool:
    name = declared[0] if isinstance(declared, list) and declared[1:] == ["null"] else declared
    return isinstance(name, str) and name in _PYTHON_TYPES


def _keyword_faults(name: str, schema: Schema, place: str, depth: int) -> Iterator[str]:
    if name == "object":
        properties = schema.get("properties")
        if type(properties) is not dict or not properties or schema.get("required") != list(properties):
            yield f"{place}: every property must be required, in the order of the properties"
        elif schema.get("additionalProperties") is not False:
            yield f"{place}: additionalProperties must be false"
        else:
            for key, value in properties.items():
                yield from _part_faults(value, f"{place}.{key}", depth + 1, may_be_null=depth > 0 or key != COMPLETE)
    elif name == "array":
        if not _ordered(schema.get("minItems", 0), schema.get("maxItems"), MAX_ITEMS):
            yield f"{place}: expected 0 <= minItems <= maxItems <= {MAX_ITEMS}"
        yield from _part_faults(schema.get("items"), f"{place}[]", depth + 1, may_be_null=False)
        if "uniqueItems" in schema:
            yield from _set_faults(schema, place)
    elif name == "string" and not _ordered(0, schema.get("maxLength"), MAX_LENGTH):
        yield f"{place}: expected a maxLength of at most {MAX_LENGTH}"
    elif name == "string" and schema.get("format", CAMERA) != CAMERA:
        yield f"{place}: format {schema['format']!r:.80} is not understood; known is {CAMERA!r}"
    elif name in ("integer", "number") and not _bounded(schema.get("minimum"), schema.get("maximum"), name):
        yield f"{place}: expected {name}s as minimum and maximum"
    elif name == "number" and schema.get("multipleOf") not in STEPS:
        yield f"{place}: expected a multipleOf of {', '.join(map(str, STEPS))}"
    elif name == "enum" and not _words(schema["enum"]):
        yield f"{place}: expected an enum of different strings, and perhaps null"


def _set_faults(schema: Schema, place: str) -> Iterator[str]:
    items, low, high = schema.get("items"), schema.get("minItems", 0), schema.get("maxItems")
    if schema["uniqueItems"] is not True:
        yield f"{place}: uniqueItems must be true, or left out"
    elif type(items) is not dict or type(low) is not int or type(high) is not int:
        return  # said already
    elif type(items.get("enum")) is list:
        words = len(items["enum"])
        if high > words or num_orders(words, low, high) > MAX_ORDERS:
            yield f"{place}: uniqueItems of {high} in {words}: expected no more than there are, and at most {MAX_ORDERS} orders"
    elif items.get("type") != "object" or low > 1:
        yield f"{place}: uniqueItems are of an enum, or of objects with minItems of at most 1"


def num_orders(words: int, low: int, high: int) -> int:
    """In how many ways a set of low to high of so many words can begin, up to its last word."""
    return sum(math.perm(words, max(0, length - 1)) for length in range(low, high + 1))


def _ordered(low: object, high: object, limit: int) -> bool:
    return type(low) is int and type(high) is int and 0 <= low <= high <= limit


def _bounded(low: Any, high: Any, name: str) -> bool:
    numbers = all(type(bound) in _PYTHON_TYPES[name] and math.isfinite(bound) for bound in (low, high))
    return numbers and low <= high


def _words(values: object) -> bool:
    if type(values) is not list:
        return False
    words = [value for value in values if value is not None]
    return bool(words) and all(type(word) is str for word in words) and len(set(map(str, values))) == len(values)


def _answer(properties: dict[str, Schema]) -> Schema:
    return _object({**properties, COMPLETE: {"type": "boolean"}})


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(items: Schema, at_most: int, *, at_least: int = 0) -> Schema:
    return {"type": ["array", "null"], "items": items, "minItems": at_least, "maxItems": at_most}


def _set(items: Schema, at_most: int, *, at_least: int = 0) -> Schema:
    return {**_list(items, at_most, at_least=at_least), "uniqueItems": True}


def _position() -> Schema:
    return _list({"type": "integer", "minimum": 0, "maximum": MAX_PX}, 2, at_least=2)


def _text(max_length: int) -> Schema:
    return {"type": ["string", "null"], "maxLength": max_length}


def _choice(words: Sequence[str], *, nullable: bool = True) -> Schema:
    return {"enum": [*words, None] if nullable else [*words]}


def _share() -> Schema:
    return {"type": ["number", "null"], "minimum": 0, "maximum": 1, "multipleOf": 0.01}
