"""What an ONNX file says about itself, read from its bytes before any engine sees them. No onnx package: this rides in the car.

An onnxruntime session that is made from bytes reads external data from the disk when it was not given in memory: version 1.31
any file below the working directory, 1.20 and 1.23 any path at all, `../x` and absolute ones too (measured). So every tensor that
names a place outside the file is found here. Initializers of the graph may, and `graph_contract` compares the place with the
files that were verified; in node attributes, subgraphs, functions and sparse tensors none may.

The numbers are the field numbers of onnx.proto; fields that are not listed are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from drivekd.errors import BundleError

from .protobuf import BrokenProtobufError, Value, fields, last_number, message, messages, number, packed, string, text

MAX_DEPTH = 16  # of graphs within graphs; ours have none
EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}
ORT_FORMAT_MARK = b"ORTM"  # at byte 4 of onnxruntime's own flatbuffer format, which it would load in place of ONNX

# TensorProto.DataType: name and bits of one value
DTYPES = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64),
    16: ("bfloat16", 16), 21: ("uint4", 4), 22: ("int4", 4),
}  # fmt: skip

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class GraphTensor:
    """One input or output of the graph. dims: None = not stated; a free dim is a name, "" when it has none."""

    name: str
    dtype: str
    dims: Dims | None


@dataclass(frozen=True)
class ExternalTensor:
    """Weights that lie at `location`. dtype: "float32", ...; length: as stated, None = not; nbytes: of dims and dtype."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    location: str
    offset: int
    length: int | None
    nbytes: int


@dataclass
class OpUse:
    """How the file uses one operator: most inputs and all attribute names over its nodes."""

    inputs: int = 0
    attributes: set[str] = field(default_factory=set)


@dataclass
class OnnxFile:
    """opsets: version by domain. ops: by (domain, operator). "ai.onnx" is written "". external: those of `initializers`."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[GraphTensor] = field(default_factory=list)
    outputs: list[GraphTensor] = field(default_factory=list)
    ops: dict[tuple[str, str], OpUse] = field(default_factory=dict)
    functions: set[tuple[str, str]] = field(default_factory=set)
    initializers: list[str] = field(default_factory=list)
    external: list[ExternalTensor] = field(default_factory=list)


def read_onnx(data: bytes, where: str) -> OnnxFile:
    """Read one ONNX file. Raises BundleError naming `where` when the bytes are no ONNX model."""
    found = OnnxFile()
    if data[4:8] == ORT_FORMAT_MARK:
        raise BundleError(f"{where} is in onnxruntime's own format, not ONNX; export the checkpoint again")
    try:
        _read_model(memoryview(data), found)
    except (BrokenProtobufError, UnicodeDecodeError) as error:
        raise BundleError(f"{where} is no ONNX file ({error}); export the checkpoint again") from error
    return found


def _read_model(data: memoryview, found: OnnxFile) -> None:
    for key, value in fields(data):
        if key == 1:
            found.ir_version = number(value)
        elif key == 7:
            _read_graph(value, found, depth=0)
        elif key == 8:
            domain, version = text(value, 1), last_number(value, 2)
            found.opsets["" if domain == "ai.onnx" else domain] = version
        elif key == 20:
            raise BrokenProtobufError("it carries training information, which no bundle does")
        elif key == 25:
            _read_function(value, found)


def _read_graph(data: Value, found: OnnxFile, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BrokenProtobufError(f"graphs nested deeper than {MAX_DEPTH}")
    for key, value in fields(message(data)):
        if key == 1:
            _read_node(value, found, depth)
        elif key == 5:
            _read_tensor(value, found, initializer=depth == 0)
        elif key == 15:
            _read_sparse_tensor(value, found)
        elif depth == 0 and key in (11, 12):
            (found.inputs if key == 11 else found.outputs).append(_graph_tensor(value))


def _read_function(data: Value, found: OnnxFile) -> None:
    found.functions.add((text(data, 10), text(data, 1)))
    for key, value in fields(message(data)):
        if key == 7:
            _read_node(value, found, depth=1)
        elif key == 11:
            _read_attribute(value, found, depth=1)


def _read_node(data: Value, found: OnnxFile, depth: int) -> None:
    inputs, names, operator, domain = 0, set(), "", ""
    for key, value in fields(message(data)):
        if key == 1:
            inputs += 1
        elif key == 4:
            operator = string(value)
        elif key == 5:
            names.add(_read_attribute(value, found, depth))
        elif key == 7:
            domain = string(value)
    use = found.ops.setdefault(("" if domain == "ai.onnx" else domain, operator), OpUse())
    use.inputs = max(use.inputs, inputs)
    use.attributes |= names


def _read_attribute(data: Value, found: OnnxFile, depth: int) -> str:
    name = ""
    for key, value in fields(message(data)):
        if key == 1:
            name = string(value)
        elif key in (5, 10):
            _read_tensor(value, found)
        elif key in (6, 11):
            _read_graph(value, found, depth + 1)
        elif key in (22, 23):
            _read_sparse_tensor(value, found)
    return name


def _read_sparse_tensor(data: Value, found: OnnxFile) -> None:
    for key, value in fields(message(data)):
        if key in (1, 2):
            _read_tensor(value, found)


def _read_tensor(data: Value, found: OnnxFile, *, initializer: bool = False) -> None:
    """Keep the tensor when anything in it points outside: a location without the flag, or the flag without a location.

    initializer: of the graph itself. No other may lie outside: engines are given weights by the names of initializers, and would
    look for the rest on the disk.
    """
    dims: list[int] = []
    dtype, name, external, entries = 0, "", False, list[tuple[str, str]]()
    for key, value in fields(message(data)):
        if key == 1:
            dims += [value] if isinstance(value, int) else packed(value)
        elif key == 2:
            dtype = number(value)
        elif key == 8:
            name = string(value)
        elif key == 13:
            entries.append((text(value, 1), text(value, 2)))
        elif key == 14:
            external = number(value) == 1
    if initializer:
        found.initializers.append(name)
    if external or entries:
        if not initializer:
            raise BrokenProtobufError(f"tensor {name!r} lies outside the file and is no initializer of the graph")
        found.external.append(_external_tensor(name, dtype, dims, entries))


def _external_tensor(name: str, dtype: int, dims: list[int], entries: list[tuple[str, str]]) -> ExternalTensor:
    keys = [key for key, _ in entries]
    if not name or len(set(keys)) != len(keys) or "location" not in keys or not set(keys) <= EXTERNAL_KEYS:
        raise BrokenProtobufError(f"tensor {name!r} does not state one place of its data, but {entries}")
    if dtype not in DTYPES:
        raise BrokenProtobufError(f"tensor {name!r} has the unknown data type {dtype}")
    stated = dict(entries)
    word, bits = DTYPES[dtype]
    return ExternalTensor(
        name=name,
        dtype=word,
        dims=tuple(dims),
        location=stated["location"],
        offset=_decimal(stated.get("offset", "0"), name),
        length=_decimal(stated["length"], name) if "length" in stated else None,
        nbytes=(prod(dims) * bits + 7) // 8,
    )


def _decimal(digits: str, name: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise BrokenProtobufError(f"tensor {name!r} has an offset or length {digits[:30]!r}")
    return int(digits)


def _graph_tensor(data: Value) -> GraphTensor:
    """ValueInfoProto{name, type{tensor_type{elem_type, shape}}}."""
    dtype, dims = "", None
    for tensor_type in messages(data, 2, 1):
        code = last_number(tensor_type, 1)
        dtype = DTYPES[code][0] if code in DTYPES else f"type {code}"
        for shape in messages(tensor_type, 2):
            dims = tuple(_dim(dim) for dim in messages(shape, 1))
    return GraphTensor(text(data, 1), dtype, dims)


def _dim(data: memoryview) -> int | str:
    result: int | str = ""
    for key, value in fields(data):
        if key == 1:
            result = number(value)
        elif key == 2:
            result = string(value)
    return result
