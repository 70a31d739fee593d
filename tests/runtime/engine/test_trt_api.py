"""The real API: that the stand-in (fake_tensorrt) has its calls, and that TensorRT itself gives onnxruntime's numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeContext, FakeEngine, FakeRuntime
from small_bundle import write_small_bundle
from trt_cases import DECODER, feeds, frame

from drivekd.runtime.bundle.reader import read_bundle
from drivekd.runtime.engine import trt
from drivekd.runtime.engine.cuda import DeviceArray
from drivekd.runtime.engine.ort import OrtRunner
from drivekd.runtime.engine.trt import TrtRunner

RTX = importlib.util.find_spec("tensorrt_rtx")
# what trt.py calls, with its arguments in order
CALLS = {
    ("Runtime", "deserialize_cuda_engine"): ["serialized_engine"],
    ("ICudaEngine", "get_tensor_name"): ["index"],
    ("ICudaEngine", "get_tensor_mode"): ["name"],
    ("ICudaEngine", "get_tensor_location"): ["name"],
    ("ICudaEngine", "get_tensor_dtype"): ["name"],
    ("ICudaEngine", "create_execution_context"): ["strategy"],
    ("IExecutionContext", "set_optimization_profile_async"): ["profile_index", "stream_handle"],
    ("IExecutionContext", "set_device_memory"): ["memory", "size"],
    ("IExecutionContext", "set_input_shape"): ["name", "shape"],
    ("IExecutionContext", "set_tensor_address"): ["name", "memory"],
    ("IExecutionContext", "get_tensor_shape"): ["name"],
    ("IExecutionContext", "infer_shapes"): [],
    ("IExecutionContext", "execute_async_v3"): ["stream_handle"],
}
PROPERTIES = ("num_optimization_profiles", "num_io_tensors", "device_memory_size_v2")
FAKES = {"Runtime": FakeRuntime, "ICudaEngine": FakeEngine, "IExecutionContext": FakeContext}


@pytest.mark.skipif(RTX is None, reason="needs tensorrt-rtx")
def test_the_stand_in_has_the_calls_of_the_real_api() -> None:
    import tensorrt_rtx as real

    for (owner, name), arguments in CALLS.items():
        said = getattr(getattr(real, owner), name).__doc__
        assert ", ".join(arguments) == ", ".join(word for word in arguments if f"{word}:" in said), f"{owner}.{name}: {said}"
        assert callable(getattr(FAKES[owner], name))
    for name in PROPERTIES:
        assert hasattr(real.ICudaEngine, name) and hasattr(FakeEngine, name)
    assert real.TensorIOMode.INPUT != real.TensorIOMode.OUTPUT
    assert real.TensorLocation.DEVICE != real.TensorLocation.HOST
    assert real.ExecutionContextAllocationStrategy.USER_MANAGED != real.ExecutionContextAllocationStrategy.STATIC
    for dtype in ("FLOAT", "HALF", "INT64", "INT32"):
        assert np.dtype(real.nptype(getattr(real.DataType, dtype))).name in ("float32", "float16", "int64", "int32")


@pytest.mark.trt
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None or trt.this_device() is None, reason="needs TensorRT and its GPU"
)
def test_tensorrt_itself_gives_onnxruntimes_numbers(tmp_path: Path) -> None:
    from drivekd.export.trt.engines import engines_from_bundle

    bundle = read_bundle(write_small_bundle(tmp_path / "bundle"))
    engines_from_bundle(bundle.path)
    with TrtRunner(bundle, DECODER) as engine, OrtRunner(bundle, DECODER, threads=1) as plain:
        for left, right in zip(frame(engine, bundle), frame(plain, bundle), strict=True):
            assert np.allclose(left, right, atol=1e-3)  # TF32 products on Ampere and newer
        assert isinstance(engine.infer(feeds(1, 3))["present.0.key"], DeviceArray)
