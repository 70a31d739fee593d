"""Can this machine's onnxruntime run these graphs? Asked of onnxruntime itself, before it loads one.

No table of versions that grows old: the graphs say which operators of which opset they use, and with how many inputs and which
attributes (`onnx_file`); this onnxruntime lists what it knows. GroupQueryAttention alone has 9 inputs in 1.20, 12 in 1.23 and 16
in 1.31.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeAlias

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_bindings

from drivekd.errors import BundleError
from drivekd.runtime.bundle.onnx_file import OnnxFile, OpUse
from drivekd.runtime.bundle.reader import Bundle

MIN_ONNXRUNTIME = (1, 20)  # the first that runs the blocked int4 DequantizeLinear of opset 21 on a CPU; JetPack 6 has 1.23

Schema: TypeAlias = Any  # onnxruntime's OpSchema: since_version, max_input, attributes


def check_platform(bundle: Bundle, *, dialect: str | None = None) -> None:
    """Raises BundleError when this machine's onnxruntime is too old for the bundle, naming graph and operator.

    dialect: of the decoder that will run; None = every one that the bundle has.
    """
    version = onnxruntime.__version__
    if _version(version) < MIN_ONNXRUNTIME:
        wanted = ".".join(map(str, MIN_ONNXRUNTIME))
        raise BundleError(f"{bundle.path}: onnxruntime {version} is too old, expected at least {wanted}. {_advice()}")
    ran = bundle.graphs if dialect is None else ("vision", f"decoder.{dialect}")
    for name, graph in bundle.graphs.items():
        if name in ran and (missing := obstacle(graph)):
            raise BundleError(f"{bundle.path}: this machine's onnxruntime {version} cannot run {name}: {missing}. {_advice()}")


def obstacle(graph: OnnxFile) -> str | None:
    """The first thing in a graph that this machine's onnxruntime does not know; None when it knows all."""
    schemas = _schemas()
    newest = max(schema.since_version for (domain, _), known in schemas.items() for schema in known if domain == "")
    if graph.opsets.get("", 0) > newest:
        return f"it knows opset {newest}, the graph has {graph.opsets['']}"
    for (domain, operator), use in graph.ops.items():
        if (domain, operator) in graph.functions:
            continue
        opset = graph.opsets.get(domain, 1)
        known = [schema for schema in schemas.get((domain, operator), ()) if schema.since_version <= opset]
        if not known:
            return f"it has no operator {_name(domain, operator)} of opset {opset}"
        if missing := _missing(max(known, key=lambda schema: schema.since_version), use):
            return f"its {_name(domain, operator)} has no {missing}"
    return None


def _missing(schema: Schema, use: OpUse) -> str | None:
    if use.inputs > schema.max_input:
        return f"input {use.inputs}, only {schema.max_input}"
    unknown = sorted(use.attributes - set(schema.attributes))
    return f"attribute {unknown[0]!r}" if unknown else None


@lru_cache(maxsize=1)
def _schemas() -> dict[tuple[str, str], list[Schema]]:
    found: dict[tuple[str, str], list[Schema]] = {}
    for schema in ort_bindings.get_all_operator_schema():
        found.setdefault((schema.domain, schema.name), []).append(schema)
    return found


def _version(text: str) -> tuple[int, int]:
    """ "1.23.2" -> (1, 23), "1.24.0.dev1+cu12" -> (1, 24)."""
    found = re.match(r"(\d+)\.(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def _name(domain: str, operator: str) -> str:
    return f"{domain}::{operator}" if domain else operator


def _advice() -> str:
    return "Update it (pip install -U onnxruntime; 1.23.2 is the last for Python 3.10), or export for this machine's version."
