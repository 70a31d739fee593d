"""A torch module becomes an ONNX graph with the names of its spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from drivekd.errors import ExportError
from drivekd.export.lowering import passes
from drivekd.export.lowering.ops import symbolic_norms
from drivekd.export.source.quiet import quiet
from drivekd.runtime.bundle.manifest import GraphSpec, TensorSpec

from .specs import dummy_inputs, dynamic_dims

OPSET = 18  # torch writes it natively; every engine of docs/tensorrt.md reads it

CLEAN = (
    passes.strip_metadata,
    passes.set_ir_version,
    passes.name_weights,
    passes.name_marked,
    passes.fold_transposes,
    passes.fold_constants,
    passes.fix_reshapes,
    passes.remove_unused,
    passes.name_constants,
    passes.merge_equal_nodes,
)


def graph_from_module(module: nn.Module, spec: GraphSpec) -> ir.Model:
    """The graph of `module` under the spec's names, its own nodes of domain "drivekd" (symbolic_ops) still among them.

    Its weights are views of the module's. Raises ExportError when torch cannot turn the module into a graph.
    """
    args, shapes = _nested(spec, dummy_inputs(spec)), _nested(spec, dynamic_dims(spec))
    try:
        with quiet(), torch.no_grad(), symbolic_norms(module):
            program = torch.onnx.export(
                module.eval(),
                tuple(args),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(shapes),
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                optimize=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch cannot export {spec.file}: {error}") from error
    assert program is not None
    return passes.run_passes(program.model, CLEAN, spec.file)


def finished(model: ir.Model, spec: GraphSpec, lowering: Sequence[passes.Pass]) -> ir.Model:
    """Lowered; nothing unused, nodes and values with their names, inputs and outputs with the spec's dims."""
    model = passes.run_passes(model, [*lowering, passes.remove_unused, passes.name_nodes], spec.file)
    for value, tensor in zip((*model.graph.inputs, *model.graph.outputs), (*spec.inputs, *spec.outputs), strict=True):
        _state(value, tensor)
    return model


def _state(value: ir.Value, tensor: TensorSpec) -> None:
    assert value.name == tensor.name, f"{value.name} stands where {tensor.name} belongs"
    value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(tensor.dtype)))
    value.shape = ir.Shape(tensor.dims)


def _nested(spec: GraphSpec, values: Sequence[Any]) -> list[Any]:
    """Flat values, one an input -> the arguments of the module: K/V inputs become one list of (key, value)."""
    num_plain = sum(not tensor.name.startswith("past_key_values.") for tensor in spec.inputs)
    pairs = list(zip(values[num_plain::2], values[num_plain + 1 :: 2], strict=True))
    return [*values[:num_plain], *([pairs] if pairs else [])]
