"""What this machine's onnxruntime lacks is said before it loads a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx import helper
from small_bundle import decoder_model, write_small_bundle

from drivekd.errors import BundleError
from drivekd.runtime import check_bundle, read_bundle
from drivekd.runtime.bundle.onnx_file import read_onnx
from drivekd.runtime.engine.ort_operators import check_platform, obstacle


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("onnxruntime was given a graph")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


def test_this_machine_runs_the_small_bundle(tmp_path: Path) -> None:
    check_platform(read_bundle(write_small_bundle(tmp_path / "bundle")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.opset_import[0].__setattr__("version", 99), r"it knows opset \d\d, the graph has 99"),
        (lambda m: m.graph.node[0].__setattr__("op_type", "MagicAttention"), "it has no operator MagicAttention of opset 18"),
        (lambda m: m.graph.node[0].__setattr__("domain", "trt"), "it has no operator trt::ReduceMean"),
        (lambda m: m.graph.node[1].input.append("x"), "its MatMul has no input 3, only 2"),
        (lambda m: m.graph.node[1].attribute.append(helper.make_attribute("speed", 3)), "its MatMul has no attribute 'speed'"),
        (lambda m: m.graph.node[1].__setattr__("op_type", "RMSNormalization"), "it has no operator RMSNormalization of opset 18"),
    ],
)
def test_what_this_onnxruntime_lacks_is_named_before_loading(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    model = decoder_model()
    change(model)
    bundle = read_bundle(write_small_bundle(tmp_path / "bundle", decoder_concat_onnx=model.SerializeToString()))
    with pytest.raises(BundleError, match=rf"cannot run decoder\.concat: {message}.*Update it"):
        check_platform(bundle)
    check_platform(bundle, dialect="gqa")  # the graph that will not run is not judged


def test_a_local_function_is_no_unknown_operator() -> None:
    model = decoder_model()
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("local", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.append(helper.make_node("F", ["mean"], ["x"], domain="local"))
    assert obstacle(read_onnx(model.SerializeToString(), "here")) is None


def test_an_old_onnxruntime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.1+cu12")
    with pytest.raises(BundleError, match=r"onnxruntime 1\.9\.1\+cu12 is too old, expected at least 1\.20"):
        check_bundle(write_small_bundle(tmp_path / "bundle"))
