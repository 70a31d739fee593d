"""Small edits of a graph: each takes a model and returns (model, changed)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

IR_VERSION = 10  # onnxruntime 1.23, the last for Python 3.10, reads no newer one


def strip_metadata(model: ir.Model) -> tuple[ir.Model, bool]:
    """Take out doc strings and metadata: source paths and stack traces, which differ from folder to folder."""
    changed = False
    for part in (model, *_parts(model)):
        if part.metadata_props or part.doc_string:
            part.metadata_props.clear()
            part.doc_string = None
            changed = True
    return model, changed


def set_ir_version(model: ir.Model) -> tuple[ir.Model, bool]:
    """Lower the file format's version to what the oldest supported onnxruntime reads."""
    if model.ir_version <= IR_VERSION:
        return model, False
    model.ir_version = IR_VERSION
    return model, True


def _parts(model: ir.Model) -> Iterator[Any]:
    """Every graph, function, node and value."""
    for graph in model.graphs():
        yield graph
        yield from (*graph.inputs, *graph.initializers.values())
        for node in graph:
            yield node
            yield from node.outputs
    for function in model.functions.values():
        yield function
        for node in function:
            yield node
            yield from node.outputs
