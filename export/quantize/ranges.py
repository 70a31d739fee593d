"""What the inputs of MatMuls are while a graph runs: int8 takes its scales from it.

K input channels of a MatMul
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from drivekd.errors import ExportError
from drivekd.export.lowering.nodes import NewNodes
from drivekd.export.source.repeatable import EXPORT_THREADS
from drivekd.runtime.bundle.manifest import GraphSpec

from .matmuls import weight_array, weight_matmuls

LARGEST, POWER = ".input_largest", ".input_power"

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ActivationRange:
    """Of each of the K channels of a MatMul's input: the largest magnitude and the mean square, float32 [K]."""

    largest: NDArray[np.float32]
    power: NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """ranges: by MatMul name."""

    ranges: dict[str, ActivationRange]

    def of(self, name: str) -> ActivationRange:
        """Raises ExportError when that MatMul was not recorded."""
        if name not in self.ranges:
            raise ExportError(f"{name} was not calibrated; another graph was ({', '.join(list(self.ranges)[:3])}, ...)")
        return self.ranges[name]


def record_ranges(
    spec: GraphSpec, folder: Path, feeds: Sequence[Feeds], sources: Sequence[str]
) -> tuple[Calibration, list[NDArray[np.float32]]]:
    """Run folder/spec.file, float32, on each of the feeds; also returns the graph's first output for each.

    sources: names of the feeds in errors. Raises ExportError when a feed, an activation or an output is NaN or infinite.
    """
    runs: list[dict[str, NDArray[np.float32]]] = []
    with _range_session(spec, folder) as (session, names):
        wanted = [spec.outputs[0].name, *(f"{name}{suffix}" for name in names for suffix in (LARGEST, POWER))]
        for source, feed in zip(sources, feeds, strict=True):
            _check_finite(spec.file, source, feed)
            runs.append(dict(zip(wanted, session.run(wanted, feed), strict=True)))
            _check_finite(spec.file, source, runs[-1])
    ranges = {name: _together(name, runs) for name in names}
    return Calibration(ranges), [run[wanted[0]] for run in runs]


def _together(name: str, runs: Sequence[Mapping[str, NDArray[np.float32]]]) -> ActivationRange:
    largest = np.max([run[f"{name}{LARGEST}"] for run in runs], axis=0)
    return ActivationRange(largest, np.mean([run[f"{name}{POWER}"] for run in runs], axis=0, dtype=np.float32))


@contextmanager
def _range_session(spec: GraphSpec, folder: Path) -> Iterator[tuple[onnxruntime.InferenceSession, list[str]]]:
    """The graph with the ranges of its MatMuls' inputs as outputs, and the names of those MatMuls."""
    model = ir.load(folder / spec.file)
    nodes = weight_matmuls(model.graph)
    for node in nodes:
        model.graph.outputs.extend(_range_outputs(node))
    path = folder / f"{spec.file}.ranges"  # beside the graph: its weights are read from there
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = EXPORT_THREADS
    try:
        ir.save(model, path)
        yield onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), [n.name or "" for n in nodes]
    finally:
        path.unlink(missing_ok=True)


def _range_outputs(node: ir.Node) -> list[ir.Value]:
    """max |x| and mean x² over all but the last axis of a MatMul's input."""
    name, inputs = node.name or "", len(weight_array(node))
    new = NewNodes(node, name)
    rows = new.one("Reshape", [node.inputs[0], new.integers(-1, inputs)], "input_rows")
    reductions = {
        LARGEST: new.one("ReduceMax", [new.one("Abs", [rows], "input_magnitude"), new.integers(0)], "input_largest", keepdims=0),
        POWER: new.one("ReduceMean", [new.one("Mul", [rows, rows], "input_square"), new.integers(0)], "input_power", keepdims=0),
    }
    for suffix, value in reductions.items():
        value.name, value.type, value.shape = f"{name}{suffix}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([inputs])
    return list(reductions.values())


def _check_finite(file: str, source: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(
                f"{source}: {name} of {file} is NaN or infinite, int8 cannot be calibrated on it; look at that image"
            )
