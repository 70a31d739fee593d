"""Which machines and bundles the TensorRT runner is for, over a stand-in (fake_tensorrt); every refusal is in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import LIMITS, FakeContext, FakeEngine, FakeTensorRT
from small_bundle import write_small_bundle
from trt_cases import DECODER, feeds

from drivekd.errors import BundleError, RunnerError
from drivekd.runtime.bundle.reader import Bundle, read_bundle
from drivekd.runtime.engine import backends, trt
from drivekd.runtime.engine.cuda import CudaMemory
from drivekd.runtime.engine.trt import TrtRunner, engine_module


def test_a_machine_without_a_gpu_engines_or_tensorrt_is_refused(
    api: FakeTensorRT, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = read_bundle(write_small_bundle(tmp_path / "bare"))
    with pytest.raises(RunnerError, match=r"has engines for nothing, this GPU is sm87 \(Orin\).*Build them: drivekd export"):
        TrtRunner(bare, DECODER).__enter__()
    monkeypatch.setattr(trt.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunnerError, match="there is none here"):
        TrtRunner(bundle, DECODER).__enter__()
    monkeypatch.setattr(trt, "this_device", lambda: None)
    with pytest.raises(RunnerError, match="no NVIDIA GPU or no driver answers"):
        TrtRunner(bundle, DECODER).__enter__()
    assert api.engines == []


def test_engines_of_another_version_or_changed_ones_never_reach_tensorrt(api: FakeTensorRT, bundle: Bundle) -> None:
    api.__version__ = "10.7.0"
    with pytest.raises(BundleError, match=r"built for the version tensorrt 10.3.0.30, this machine has tensorrt 10.7.0"):
        TrtRunner(bundle, DECODER).__enter__()
    api.__version__ = "10.3.0.30"
    (bundle.path / "engines" / "sm87" / "decoder.engine").write_bytes(b"decoder.concaT")
    with pytest.raises(BundleError, match=r"decoder\.engine was changed"):
        TrtRunner(bundle, DECODER).__enter__()
    assert api.engines == []


def test_an_engine_that_cannot_be_loaded_says_why_and_leaves_nothing(api: FakeTensorRT, bundle: Bundle) -> None:
    before = api.counters.live_bytes, api.counters.retained, api.counters.streams
    api.refuses = "Serialization assertion failed"
    with pytest.raises(RunnerError, match=r"cannot load its engine: Serialization assertion failed"):
        TrtRunner(bundle, DECODER).__enter__()
    assert (api.counters.live_bytes, api.counters.retained, api.counters.streams) == before


def test_an_engine_of_other_tensors_or_profiles_is_refused(
    api: FakeTensorRT, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FakeEngine, "get_tensor_dtype", lambda self, name: "float16" if name == "logits" else self._tensors[name].dtype
    )
    with pytest.raises(BundleError, match=r"differ in output logits float16, output logits float32"):
        TrtRunner(bundle, DECODER).__enter__()
    monkeypatch.undo()


def test_an_engine_with_a_tensor_on_the_host_is_refused(
    runner: TrtRunner, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "get_tensor_location", lambda self, name: "host")
    with pytest.raises(BundleError, match="on the host"):
        TrtRunner(bundle, DECODER).__enter__()


def test_an_engine_with_other_profiles_than_its_record_is_refused(
    runner: TrtRunner, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "num_optimization_profiles", 1)
    with pytest.raises(BundleError, match=r"its engine has 1 profiles, not 2\. Build the engines again"):
        TrtRunner(bundle, DECODER).__enter__()


def test_calls_that_no_profile_takes_are_refused_with_the_largest(runner: TrtRunner) -> None:
    with pytest.raises(RunnerError, match=rf"no profile of the engine takes .*\[1, {LIMITS.prompt + 1}, 4\].*the largest are"):
        runner.infer(feeds(LIMITS.prompt + 1, 0))
    assert runner.infer(feeds(2, 0))["logits"].shape() == [1, 8]


def test_other_feeds_than_the_graphs_are_refused(runner: TrtRunner) -> None:
    given = feeds(2, 0)
    with pytest.raises(RunnerError, match=r"differ in position_ids int32, position_ids int64"):
        runner.infer({**given, "position_ids": given["position_ids"].astype(np.int32)})
    with pytest.raises(RunnerError, match="differ in attention_mask int64"):
        runner.infer({name: value for name, value in given.items() if name != "attention_mask"})


def test_a_failing_call_says_why_and_the_next_may_go_well(runner: TrtRunner, api: FakeTensorRT) -> None:
    prefill: FakeContext = api.engines[0].contexts[0]
    prefill.fails = "Cuda failure: an illegal memory access was encountered"
    with pytest.raises(RunnerError, match=r"decoder\.concat: TensorRT failed in its profile prefill: Cuda failure: an illegal"):
        runner.infer(feeds(3, 0))
    prefill.fails = ""
    assert np.isfinite(runner.infer(feeds(3, 0))["logits"].numpy()).all()


def test_a_full_device_is_an_error_of_this_call(runner: TrtRunner, api: FakeTensorRT) -> None:
    expected = runner.infer(feeds(3, 0))["logits"].numpy()
    api.counters.limit_memory(api.counters.live_bytes)
    with pytest.raises(RunnerError, match=r"CUDA: cuMemAlloc_v2 failed with 2 \(out of memory\)"):
        runner.infer(feeds(400, 0))
    assert np.array_equal(runner.infer(feeds(3, 0))["logits"].numpy(), expected)


def test_no_driver_is_an_error_in_words() -> None:
    with pytest.raises(RunnerError, match=r"libthere-is-none.so.1 cannot be loaded"):
        CudaMemory("libthere-is-none.so.1").__enter__()


# --- which engines ----------------------------------------------------------------------------------------------------


def test_auto_takes_tensorrt_where_its_engines_of_this_gpu_are(
    api: FakeTensorRT, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = write_small_bundle(tmp_path / "bare")
    assert engine_module(bundle.path) == "tensorrt"
    assert backends.choose_backend("auto", bundle.path) == "trt"
    assert backends.choose_backend("auto", bare) == "ort-cpu"
    assert backends.choose_backend("ort-cpu", bundle.path) == "ort-cpu"
    (bundle.path / "engines" / "sm87").rename(bundle.path / "engines" / "sm110")
    assert backends.choose_backend("auto", bundle.path) == "ort-cpu"
    monkeypatch.setattr(trt, "this_device", lambda: None)
    assert backends.choose_backend("auto", bundle.path) == "ort-cpu"


def test_the_identity_names_the_engines(api: FakeTensorRT, bundle: Bundle) -> None:
    found = backends.engine_identity(bundle.path, "trt")
    assert found["engine"] == "tensorrt 10.3.0.30" and found["device"].startswith("Orin SM 87")
    assert found["engines"] == (bundle.path / "engines" / "sm87" / "engine.sha256").read_text().strip()
