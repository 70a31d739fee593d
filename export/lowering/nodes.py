"""How passes put nodes into a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

Attribute = int | float | str | Sequence[int]


class NewNodes:
    """Makes nodes in front of `place`; each is called <prefix>.<name>."""

    def __init__(self, place: ir.Node, prefix: str) -> None:
        assert place.graph is not None
        self._graph = place.graph
        self._place, self._prefix = place, prefix

    def one(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str, *, domain: str = "", **attributes: Attribute
    ) -> ir.Value:
        """A node with one output."""
        return self.many(op_type, inputs, name, 1, domain=domain, **attributes)[0]

    def many(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        num_outputs: int,
        *,
        domain: str = "",
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """A node with several outputs."""
        node = ir.node(
            op_type, inputs, attributes, domain=domain, num_outputs=num_outputs, name=f"{self._prefix}.{name}".lstrip(".")
        )
        self._graph.insert_before(self._place, node)
        return node.outputs

    def constant(self, value: ArrayLike, dtype: type[np.generic] = np.float32) -> ir.Value:
        """An initializer of that value; the graph has it once."""
        array = np.asarray(value, dtype)
        return initializer(self._graph, ir.tensor(array, name=constant_name(array)))

    def integers(self, *values: int) -> ir.Value:
        """An int64 vector."""
        return self.constant(values, np.int64)


def constant_name(array: NDArray[np.generic]) -> str:
    """int64.1_-1 of a vector, float32.0.5.scalar of a scalar: the same for equal arrays only."""
    values = "_".join(map(str, array.ravel()))
    form = "" if array.ndim == 1 else "." + ("x".join(map(str, array.shape)) or "scalar")
    return f"{array.dtype}.{values}{form}"


def initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """The initializer of the tensor's name, made from it when the graph has none."""
    assert tensor.name is not None
    if tensor.name not in graph.initializers:
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
        graph.register_initializer(value)
    return graph.initializers[tensor.name]


def replace(node: ir.Node, values: Sequence[ir.Value]) -> None:
    """Take `node` out; `values` take the place, the names, the types and the shapes of its outputs."""
    assert node.graph is not None
    for old, new in zip(node.outputs, values, strict=True):
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.type, new.shape = old.type or new.type, old.shape or new.shape
        old.name, new.name = f"{name}.replaced", name
    node.graph.remove(node, safe=True)


def nodes_of(model: ir.Model, domain: str, op_type: str) -> Iterator[ir.Node]:
    """The graph's nodes of that kind; it may be edited while they are walked."""
    return iter([node for node in model.graph if node.domain == domain and node.op_type == op_type])


def weight_of(node: ir.Node) -> str | None:
    """The layer that a node belongs to by its weight: "layers.0.mlp.up_proj" of an initializer layers.0.mlp.up_proj.weight."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name and value.name.endswith((".weight", ".bias")):
            return value.name.rpartition(".")[0]
    return None
