"""Small edits of a graph, the same for every dialect: each takes a model and returns (model, changed).

What ran so far is kept in the model's `meta`, which no file has: a pass that fails is often the victim of one before it.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnx_ir.tensor_adapters import TorchTensor

from drivekd.errors import ExportError

from .nodes import NewNodes, constant_name, initializer, nodes_of, replace, weight_of
from .ops import DOMAIN, MARK

IR_VERSION = 10  # onnxruntime 1.23, the last for Python 3.10, reads no newer one
NAMED_VALUES = 8  # longer constants keep torch's name
FOLD_LIMIT = 1024  # values; shapes and positions are smaller, weights larger
Pass: TypeAlias = Callable[[ir.Model], tuple[ir.Model, bool]]

RAN = "drivekd passes"  # in ir.Model.meta
# What a pass raises on a graph that it was not made for: a node, input, shape or attribute is not as expected.
FAILURES = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

# How torch calls the weights -> how the graph does; both families alike.
WEIGHT_NAMES = (
    (r"^model\.vision_tower\.encoder\.layer\.", "vision.layers."),
    (r"^model\.vision_tower\.", "vision."),
    (r"^model\.multi_modal_projector\.", "projector."),
    (r"^blocks\.", "vision.layers."),
    (r"^patch_embed$", "vision.patch_embed.weight"),
    (r"^(cos|sin)$", r"vision.\1"),
    (r"^merger\.", "projector."),
)


def run_passes(model: ir.Model, edits: Sequence[Pass], graph: str) -> ir.Model:
    """Every edit in turn. graph: what the model is called in errors, such as its file.

    Raises ExportError when a pass fails: it names the graph, the pass, and all that ran on this graph before, with what they did.
    """
    ran: tuple[str, ...] = model.meta.get(RAN, ())
    for edit in edits:
        try:
            model, changed = edit(model)
        except FAILURES as error:
            raise ExportError(_failure(graph, edit, ran, error)) from error
        ran += (f"{edit.__name__} ({'changed it' if changed else 'changed nothing'})",)
        model.meta[RAN] = ran
    return model


def copy_of(model: ir.Model) -> ir.Model:
    """Other nodes and values over the same weights, and what ran so far."""
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def _failure(graph: str, edit: Pass, ran: Sequence[str], error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{graph}: pass {edit.__name__} failed: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno}). "
        f"Before it ran: {', '.join(ran) or 'none'}"
    )


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


def name_marked(model: ir.Model) -> tuple[ir.Model, bool]:
    """Mark(x; name) goes, x is called `name`."""
    changed = False
    for node in nodes_of(model, DOMAIN, MARK):
        (value,) = node.inputs
        assert value is not None and node.graph is not None
        node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
        value.name = node.attributes["name"].as_string()
        node.graph.remove(node, safe=True)
        changed = True
    return model, changed


def name_weights(model: ir.Model) -> tuple[ir.Model, bool]:
    """WEIGHT_NAMES on the initializers."""
    changed = False
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        name = value.name
        for pattern, replacement in WEIGHT_NAMES:
            name = re.sub(pattern, replacement, name)
        if name != value.name:
            ir.convenience.rename_values(value, name)
            changed = True
    return model, changed


def fold_transposes(model: ir.Model) -> tuple[ir.Model, bool]:
    """Transpose of a weight -> a transposed weight: quantizers look for a MatMul's second input among the initializers.

    Nothing is copied before it is written: the new weight is a view of torch's.
    """
    changed = False
    for node in nodes_of(model, "", "Transpose"):
        (value,) = node.inputs
        assert value is not None and node.graph is not None
        if not value.is_initializer() or len(value.uses()) != 1 or value.is_graph_output():
            continue
        folded = _transposed(value, tuple(node.attributes["perm"].as_ints()))
        node.outputs[0].replace_all_uses_with(folded)
        node.graph.remove(node, safe=True)
        changed = True
    return model, changed


def _transposed(value: ir.Value, order: tuple[int, ...]) -> ir.Value:
    """An initializer in `value`'s place and of its name."""
    graph, name = value.graph, value.name
    assert isinstance(graph, ir.Graph) and name is not None and value.const_value is not None
    tensor = TorchTensor(as_torch(value.const_value).permute(order), name=name)
    for node, index in value.uses():
        node.replace_input_with(index, None)
    del graph.initializers[name]
    return initializer(graph, tensor)


def as_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    """The torch tensor behind a weight, without a copy where there is one."""
    return tensor.raw if isinstance(tensor.raw, torch.Tensor) else torch.from_numpy(tensor.numpy().copy())


def fold_constants(model: ir.Model) -> tuple[ir.Model, bool]:
    """What can be computed now is; constants become initializers.

    What is larger is left alone: torch's own optimiser would copy every weight that is transposed, and merge equal ones under
    one name.
    """
    folded = onnxscript.optimizer.fold_constants(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    rest = ir.passes.Sequential(
        IdentityEliminationPass(), LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    )(model)
    return rest.model, folded.modified or rest.modified


def merge_equal_nodes(model: ir.Model) -> tuple[ir.Model, bool]:
    """Nodes that compute the same become one."""
    result = CommonSubexpressionEliminationPass()(model)
    return result.model, result.modified


def name_constants(model: ir.Model) -> tuple[ir.Model, bool]:
    """Small constants are called after what they hold, int64.1_-1; equal ones become one."""
    changed = False
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size > NAMED_VALUES or not (value.name or "").startswith("val_"):
            continue
        array = tensor.numpy()
        name = constant_name(array)
        if name in model.graph.initializers:
            value.replace_all_uses_with(model.graph.initializers[name])
        else:
            ir.convenience.rename_values(value, name)
            tensor.name = name
        changed = True
    return model, changed


def fix_reshapes(model: ir.Model) -> tuple[ir.Model, bool]:
    """A reshape to sizes of which one is computed -> to constants and -1: shape arithmetic goes."""
    changed = False
    for node in nodes_of(model, "", "Reshape"):
        shape = node.inputs[1].producer() if node.inputs[1] is not None else None
        if shape is None or shape.op_type != "Concat":
            continue
        parts = [None if value is None else value.const_value for value in shape.inputs]
        sizes = [-1 if part is None else int(part.numpy().item()) for part in parts if part is None or part.size == 1]
        if len(sizes) == len(parts) and sizes.count(-1) == parts.count(None) == 1 and 0 not in sizes:
            node.replace_input_with(1, NewNodes(node, "").integers(*sizes))
            changed = True
    return model, changed


def squeeze_before_product(model: ir.Model) -> tuple[ir.Model, bool]:
    """Squeeze(MatMul(x, w)) -> MatMul(Squeeze(x), w): a copy of one hidden state, not of as many logits as there are words."""
    changed = False
    for node in nodes_of(model, "", "Squeeze"):
        value = node.inputs[0]
        product = value.producer() if value is not None else None
        if value is None or product is None or product.op_type != "MatMul" or len(value.uses()) != 1:
            continue
        row = NewNodes(product, "last").one("Squeeze", [product.inputs[0], node.inputs[1]], "squeeze")
        product.replace_input_with(0, row)
        replace(node, [value])
        changed = True
    return model, changed


def remove_unused(model: ir.Model) -> tuple[ir.Model, bool]:
    """Nodes and initializers that no output needs, and domains that no node has."""
    nodes = RemoveUnusedNodesPass()(model)
    opsets = RemoveUnusedOpsetsPass()(nodes.model)
    return opsets.model, nodes.modified or opsets.modified


def name_nodes(model: ir.Model) -> tuple[ir.Model, bool]:
    """Nodes are called after their weights, others after the weight before them; values after their nodes.

    A MatMul of layers.0.mlp.up_proj.weight is layers.0.mlp.up_proj. Names that a pass gave stay: torch's begin with "node_".
    """
    taken: Counter[str] = Counter()
    before = _names(model)
    scope = model.graph.name = "graph"
    for node in model.graph:
        layer = weight_of(node)
        scope = layer.rpartition(".")[0] or layer if layer else scope
        if node.name is None or node.name.startswith("node_"):
            plain = layer is not None and node.op_type in ("MatMul", "Conv", "LayerNormalization")
            node.name = _free(layer if plain and layer else f"{layer or scope}.{node.op_type.lower()}", taken)
        else:
            taken[node.name] += 1
        _name_outputs(node)
    return model, _names(model) != before


def _names(model: ir.Model) -> list[str | None]:
    values = (value.name for node in model.graph for value in node.outputs)
    return [model.graph.name, *(node.name for node in model.graph), *values]


def _free(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"


def _name_outputs(node: ir.Node) -> None:
    """ "x.value" of a node x, "x.value_1" of its second output; what ends in ".output" is a layer's, and named already."""
    for index, value in enumerate(node.outputs):
        if value.name and not value.is_graph_output() and not value.name.endswith(".output"):
            value.name = f"{node.name}.value" if index == 0 else f"{node.name}.value_{index}"


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
