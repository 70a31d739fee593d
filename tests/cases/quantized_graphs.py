"""Small graphs, made by hand, and how they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from drivekd.export.quantize.ranges import ActivationRange, Calibration
from drivekd.runtime.bundle.manifest import GraphSpec, TensorSpec

Floats = NDArray[np.float32]


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def weight(name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


def matmul(name: str, source: ir.Value, array: Floats) -> ir.Node:
    """A MatMul called `name`, whose output is called <name>.value."""
    node = ir.node("MatMul", [source, weight(f"{name}.weight", array)], name=name)
    node.outputs[0].name = f"{name}.value"
    return node


def graph(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], nodes: Sequence[ir.Node]) -> ir.Model:
    """Initializers are found by themselves."""
    used = {value for node in nodes for value in node.inputs if value is not None and value.const_value is not None}
    for output in outputs:
        output.type = ir.TensorType(ir.DataType.FLOAT)
    initializers = sorted(used, key=lambda value: value.name or "")
    made = ir.Graph(inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": 18}, name="graph")
    return ir.Model(made, ir_version=10)


def product(array: Floats, names: Sequence[str] = ("layers.0.mlp.up_proj",)) -> ir.Model:
    """x [rows, K] times each of as many equal weights."""
    x = value("x", "rows", len(array))
    nodes = [matmul(name, x, array + number) for number, name in enumerate(names)]
    return graph([x], [node.outputs[0] for node in nodes], nodes)


def spec(model: ir.Model, file: str = "decoder.concat.onnx") -> GraphSpec:
    """What a manifest would say of it."""

    def stated(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(value.name or "", "float32", ()) for value in values)

    return GraphSpec(file, None, stated(model.graph.inputs), stated(model.graph.outputs), 1e-4)


def run(model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs on onnxruntime."""
    return _session(model).run(None, dict(feeds))


def run_literally(model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs of onnx's own evaluator, each node in its own type: onnxruntime's CPU computes most of float16 in float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        outputs: list[NDArray[Any]] = ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))
    return outputs


def optimized(model: ir.Model, folder: Path) -> list[str]:
    """Operators of the graph that onnxruntime makes of it."""
    path = folder / "optimized.onnx"
    _session(model, path)
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def _session(model: ir.Model, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def ranges(x: Floats, names: tuple[str, ...]) -> Calibration:
    found = ActivationRange(np.abs(x).max(axis=0), (x**2).mean(axis=0))
    return Calibration(dict.fromkeys(names, found))
