"""Weights handed over from the bytes of a data file are the ones that lie in the graph when it is whole."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from drivekd.errors import BundleError
from drivekd.runtime.bundle.onnx_file import read_onnx
from drivekd.runtime.engine.ort_weights import external_values

K, N = 64, 34
FILE = "decoder.data"
Cut = tuple[bytes, bytes]


def int4_model(seed: int) -> onnx.ModelProto:
    """y = (x @ dequantized(w) * h + b)[:, order]: int4 w with float32 scales s, float16 h, float32 b, int64 order."""
    rng = np.random.default_rng(seed)
    weights = [
        helper.make_tensor("w", TensorProto.INT4, [K, N], rng.integers(0, 256, K * N // 2, dtype=np.uint8).tobytes(), raw=True),
        numpy_helper.from_array(rng.uniform(0.01, 0.1, (K // 32, N)).astype(np.float32), "s"),
        numpy_helper.from_array(rng.normal(size=N).astype(np.float16), "h"),
        numpy_helper.from_array(rng.normal(size=N).astype(np.float32), "b"),
        numpy_helper.from_array(rng.permutation(N).astype(np.int64), "order"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wide"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "wide"], ["product"]),
        helper.make_node("Cast", ["h"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["product", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["sum"]),
        helper.make_node("Gather", ["sum", "order"], ["y"], axis=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", N])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model


def cut(model: onnx.ModelProto, order: list[str]) -> Cut:
    """The graph without its weights, and the weights one behind the other in this order."""
    copy, data = onnx.ModelProto(), b""
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name in order:
        tensor = tensors[name]
        entries = {"location": FILE, "offset": str(len(data)), "length": str(len(tensor.raw_data))}
        data += tensor.raw_data + bytes(-len(tensor.raw_data) % 64)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return copy.SerializeToString(), data


def run(graph: bytes, options: onnxruntime.SessionOptions, x: NDArray[np.float32]) -> Any:
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    first = session.run(None, {"x": x})[0]
    gc.collect()
    np.full(1 << 20, 7, np.uint8)  # over memory that was let go
    assert np.array_equal(session.run(None, {"x": x})[0], first)
    return first


# int4 first: its view reaches into what lies behind it; last: the file ends too early for a view
@pytest.mark.parametrize("order", [["w", "s", "h", "b", "order"], ["order", "b", "h", "s", "w"], ["w"], ["b", "w"]])
@pytest.mark.parametrize("seed", range(3))
def test_weights_beside_the_graph_are_the_weights_within(order: list[str], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(3, K)).astype(np.float32)
    model = int4_model(seed)
    expected = run(model.SerializeToString(), onnxruntime.SessionOptions(), x)
    graph, data = cut(model, order)
    tensors = read_onnx(graph, "here").external
    assert sorted(tensor.name for tensor in tensors) == sorted(order)
    options = onnxruntime.SessionOptions()
    values = external_values(tensors, data, "here")
    options.add_external_initializers(list(values), list(values.values()))
    assert np.array_equal(run(graph, options, x), expected)


def test_whole_tensors_are_not_copied() -> None:
    graph, data = cut(int4_model(0), ["w", "s", "h", "b", "order"])
    data += bytes(K * N)
    values = external_values(read_onnx(graph, "here").external, data, "here")
    start = np.frombuffer(data, np.uint8).ctypes.data
    for value in values.values():
        assert start <= value.data_ptr() < start + len(data)


def test_weights_behind_the_end_are_refused() -> None:
    graph, data = cut(int4_model(0), ["s", "w"])
    tensors = read_onnx(graph, "here").external
    with pytest.raises(BundleError, match=rf"here: {FILE} has \d+ bytes, w lies behind them"):
        external_values(tensors, data[: tensors[0].offset + 8], "here")


def test_a_type_that_numpy_does_not_know_is_refused() -> None:
    graph, data = cut(int4_model(0), ["b"])
    (tensor,) = read_onnx(graph, "here").external
    with pytest.raises(BundleError, match="b is of type bfloat16"):
        external_values([dataclasses.replace(tensor, dtype="bfloat16")], data, "here")


GUARDED = """
import ctypes, mmap, sys
import numpy as np, onnxruntime
from drivekd.runtime.engine.ort_weights import external_values
from drivekd.runtime.bundle.onnx_file import read_onnx

graph, data = (open(path, "rb").read() for path in sys.argv[1:3])
page = mmap.PAGESIZE
size = -(-len(data) // page) * page
memory = mmap.mmap(-1, size + 64 * page)  # the data ends where the forbidden pages begin
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
memory[size - len(data) : size] = data
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(64 * page), 0) == 0
values = external_values(read_onnx(graph, "here").external, memoryview(memory)[size - len(data) : size], "here")
options = onnxruntime.SessionOptions()
options.add_external_initializers(list(values), list(values.values()))
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
np.save(sys.argv[3], session.run(None, {"x": np.load(sys.argv[4])})[0])
"""


@pytest.mark.e2e
def test_nothing_behind_packed_weights_is_read(tmp_path: Path) -> None:
    """The array that is handed over claims twice the bytes: with pages behind the file that kill whoever reads them."""
    x = np.random.default_rng(0).normal(size=(3, K)).astype(np.float32)
    model = int4_model(0)
    graph, data = cut(model, ["s", "h", "b", "order", "w"])
    paths = [str(tmp_path / name) for name in ("graph", "data", "found.npy", "x.npy")]
    for path, content in zip(paths, (graph, data), strict=False):
        Path(path).write_bytes(content)
    np.save(paths[3], x)
    done = subprocess.run([sys.executable, "-c", GUARDED, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(paths[2]), run(model.SerializeToString(), onnxruntime.SessionOptions(), x))
