"""The MatMuls of weights in a graph: what quantizers and exclusions are about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from drivekd.errors import ExportError
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
