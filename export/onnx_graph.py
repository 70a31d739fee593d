"""A torch module becomes an ONNX file with the names of its spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from drivekd.errors import ExportError
from drivekd.runtime.manifest import GraphSpec

from . import passes
from .quiet import quiet
from .specs import dummy_inputs, dynamic_dims

OPSET = 18  # torch writes it natively; every engine of DEPLOY section 2 reads it
INLINE_LIMIT_BYTES = 1_800_000_000  # protobuf ends at 2 GiB; the rest is left for the graph itself

PASSES: tuple[Callable[[ir.Model], tuple[ir.Model, bool]], ...] = (passes.strip_metadata, passes.set_ir_version)
PastKeyValuesOf = list[tuple[Any, Any]]


def onnx_from_module(module: nn.Module, spec: GraphSpec, folder: Path) -> GraphSpec:
    """Write `module` as folder/spec.file and return the spec, with data_file set when the weights lie beside it.

    Raises ExportError when torch cannot turn the module into a graph, OSError when the file cannot be written.
    """
    args, shapes = _nested(spec, dummy_inputs(spec)), _nested(spec, dynamic_dims(spec))
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                tuple(args),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(shapes),
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch cannot export {spec.file}: {error}") from error
    assert program is not None
    return _save(_apply_passes(program.model), spec, folder)


def _nested(spec: GraphSpec, values: Sequence[Any]) -> list[Any]:
    """Flat values, one an input -> the arguments of the module: K/V inputs become one list of (key, value)."""
    num_plain = sum(not tensor.name.startswith("past_key_values.") for tensor in spec.inputs)
    pairs: PastKeyValuesOf = list(zip(values[num_plain::2], values[num_plain + 1 :: 2], strict=True))
    return [*values[:num_plain], *([pairs] if pairs else [])]


def _apply_passes(model: ir.Model) -> ir.Model:
    for edit in PASSES:
        model, _ = edit(model)
    return model


def _save(model: ir.Model, spec: GraphSpec, folder: Path) -> GraphSpec:
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if weights <= INLINE_LIMIT_BYTES:
        ir.save(model, folder / spec.file)
        return spec
    data_file = f"{spec.file}.data"
    ir.save(model, folder / spec.file, external_data=data_file)
    return dataclasses.replace(spec, data_file=data_file)
