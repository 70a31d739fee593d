"""The MatMuls of weights in a graph: what quantizers and exclusions are about."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from drivekd.errors import ExportError, UsageError
from drivekd.runtime.bundle.manifest import GraphSpec


def weight_matmuls(graph: ir.Graph) -> list[ir.Node]:
    """The MatMuls whose second input is a float32 weight [in, out], in order."""
    return [node for node in graph if node.op_type == "MatMul" and _is_weight(node.inputs[1])]


def weight_array(node: ir.Node) -> NDArray[np.float32]:
    """The weight [in, out] of one of them; mapped from its file when it lies in one."""
    value = node.inputs[1]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def matmul_names(folder: Path, spec: GraphSpec) -> list[str]:
    """Names of the MatMuls of weights in folder/spec.file: what exclusions choose from."""
    return [node.name or "" for node in weight_matmuls(ir.load(folder / spec.file).graph)]


def matching(patterns: Sequence[str], names: Collection[str]) -> list[str]:
    """Those of the names that match a pattern ("layers.0.*"; * is any text)."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_patterns(key: str, patterns: Sequence[str], names: Collection[str]) -> None:
    """Refuse a pattern of the setting `key` that matches none of the names. Raises UsageError naming what is near."""
    for pattern in patterns:
        if not matching([pattern], names):
            near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.4)
            meant = f"Did you mean {' or '.join(near)}? " if near else ""
            known = ", ".join(list(names)[:4])
            raise UsageError(
                f"{key} {pattern!r} matches no MatMul. {meant}They are called {known} and so on; * stands for any text"
            )


def check_finite(nodes: Sequence[ir.Node]) -> None:
    """Raises ExportError naming the first MatMul whose weight has NaN or infinite values."""
    for node in nodes:
        array = weight_array(node)
        if not np.isfinite([array.max(), array.min()]).all():  # both are NaN when one value is
            count = int((~np.isfinite(array)).sum())
            raise ExportError(f"{node.name}: {count} of {array.size} weights are NaN or infinite, so they cannot be quantized")


def remove_unused_weights(graph: ir.Graph) -> None:
    """Take out the initializers that no node reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _is_weight(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2 and tensor.size > 0
