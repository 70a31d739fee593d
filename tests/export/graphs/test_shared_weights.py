"""Weights of several graphs in one file: equal bytes once, pages aligned, the same answers, nothing of the old files left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from drivekd.export.graphs.shared_weights import ALIGNMENT, MIN_BYTES, share_weights

RNG = np.random.default_rng(0)
SHARED = RNG.standard_normal((32, 40)).astype(np.float32)
OWN = {name: RNG.standard_normal((32, 40)).astype(np.float32) for name in ("a", "b")}
SMALL = np.full(40, 3, np.float32)
X = RNG.standard_normal((2, 32)).astype(np.float32)


def save_graph(folder: Path, name: str, *, external: bool) -> None:
    """x -> x SHARED + x OWN + SMALL; the shared weight has another name in each graph."""
    tape = ir.tape.Tape()
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[2, 32])
    weights = {f"shared_{name}": SHARED, "own": OWN[name], "small": SMALL}
    shared, own, small = (tape.initializer(ir.tensor(array, name=key)) for key, array in weights.items())
    y = tape.op("Add", [tape.op("Add", [tape.op("MatMul", [x, shared]), tape.op("MatMul", [x, own])]), small])
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 40])
    graph = ir.Graph([x], [y], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 18}, name="graph")
    model = ir.Model(graph, ir_version=10)
    ir.save(model, folder / f"{name}.onnx", external_data=f"{name}.data" if external else None)


def answer(path: Path) -> NDArray[np.float32]:
    return np.asarray(onnxruntime.InferenceSession(path).run(None, {"x": X})[0])


@pytest.mark.parametrize("external", [False, True])
def test_shared_weights_give_the_same_answers(tmp_path: Path, external: bool) -> None:
    for name in ("a", "b"):
        save_graph(tmp_path, name, external=external)
    before = [answer(tmp_path / f"{name}.onnx") for name in ("a", "b")]
    share_weights(tmp_path, ["a.onnx", "b.onnx"], "decoder.data")
    for name, expected in zip(("a", "b"), before, strict=True):
        np.testing.assert_array_equal(answer(tmp_path / f"{name}.onnx"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "decoder.data"]


def test_equal_bytes_lie_once_at_whole_pages(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_graph(tmp_path, name, external=False)
    share_weights(tmp_path, ["a.onnx", "b.onnx"], "decoder.data")
    places = {}
    for name in ("a", "b"):
        for key, value in ir.load(tmp_path / f"{name}.onnx").graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes < MIN_BYTES:
                assert not isinstance(tensor, ir.ExternalTensor), "small ones stay in the graph"
                continue
            assert isinstance(tensor, ir.ExternalTensor)
            assert tensor.offset is not None
            assert tensor.offset % ALIGNMENT == 0
            assert str(tensor.location) == "decoder.data", "a plain name: no folder"
            places[name, key] = tensor.offset
    assert places["a", "shared_a"] == places["b", "shared_b"]
    assert len(set(places.values())) == 3
    assert (tmp_path / "decoder.data").stat().st_size == 2 * 2 * ALIGNMENT + SHARED.nbytes  # 5,120 bytes take two pages


def test_sharing_again_into_the_same_file_changes_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_graph(tmp_path, name, external=True)
    share_weights(tmp_path, ["a.onnx", "b.onnx"], "decoder.data")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    share_weights(tmp_path, ["a.onnx", "b.onnx"], "decoder.data")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
