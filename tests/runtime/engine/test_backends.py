"""Backends by name: the one that was asked for runs or refuses, and what is fed back to a graph stays on its device."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from small_bundle import DECODER, write_small_bundle

from drivekd.errors import BundleError, RunnerError, UsageError
from drivekd.runtime.bundle.reader import Bundle, read_bundle
from drivekd.runtime.engine.backends import BACKENDS, choose_backend, engine_identity, open_runner
from drivekd.runtime.engine.ort import OrtRunner, OrtTensor
from drivekd.runtime.engine.trt import TrtRunner


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path_factory.mktemp("small") / "bundle"))


def feeds(batch: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    past = {f"past_key_values.0.{part}": rng.normal(size=(batch, 1, 3, 2)).astype(np.float32) for part in ("key", "value")}
    return {
        "inputs_embeds": rng.normal(size=(batch, 2, 4)).astype(np.float32),
        "attention_mask": np.ones((batch, 5), np.int64),
        "position_ids": np.zeros((batch, 2), np.int64),
        **past,
    }


def test_names(bundle: Bundle) -> None:
    assert BACKENDS == ("auto", "trt", "ort-cpu", "ort-cuda")
    assert choose_backend("auto", bundle.path) == "ort-cpu"  # no engines in it
    assert [choose_backend(name, bundle.path) for name in BACKENDS[1:]] == list(BACKENDS[1:])
    with pytest.raises(UsageError, match=r"backend 'cuda' is unknown; this version has: auto, trt, ort-cpu, ort-cuda"):
        choose_backend("cuda", bundle.path)


def test_each_backend_opens_its_runner(bundle: Bundle) -> None:
    assert isinstance(open_runner(bundle, "vision", "ort-cpu", 1), OrtRunner)
    assert isinstance(open_runner(bundle, "vision", "ort-cuda", None), OrtRunner)
    assert isinstance(open_runner(bundle, "decoder.concat", "trt", None), TrtRunner)


def test_the_identity_of_an_engine_names_version_and_processor(bundle: Bundle) -> None:
    found = engine_identity(bundle.path, "ort-cpu")
    assert found["engine"] == f"onnxruntime {onnxruntime.__version__} ort-cpu"
    assert found["device"]
    assert found == engine_identity(bundle.path, "ort-cpu")
    with pytest.raises(BundleError, match="no engines for this GPU"):
        engine_identity(bundle.path, "trt")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="needs onnxruntime without CUDA")
def test_a_provider_that_is_not_installed_is_refused(bundle: Bundle) -> None:
    with pytest.raises(RunnerError, match="backend ort-cuda needs onnxruntime's CUDAExecutionProvider"):
        open_runner(bundle, "vision", "ort-cuda", 1).__enter__()


def test_a_provider_that_does_not_start_is_no_other_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu without a GPU: the session is there, and it runs on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(RunnerError, match="asked onnxruntime for CUDAExecutionProvider, it fell back to CPUExecutionProvider"):
        open_runner(bundle, "vision", "ort-cuda", 1).__enter__()


def test_outputs_are_fed_back_as_they_are(bundle: Bundle) -> None:
    """The same numbers whether K/V goes on as the engine's tensor or by way of the host."""
    with OrtRunner(bundle, "decoder.concat", threads=1) as runner:
        first = runner.infer(feeds())
        for tensors in (first, {name: tensor.numpy() for name, tensor in first.items()}):
            past = {name.replace("present", "past_key_values"): tensors[name] for name in tensors if name != "logits"}
            given = {**feeds(), "attention_mask": np.ones((2, 7), np.int64), **past}
            found = {name: tensor.numpy() for name, tensor in runner.infer(given).items()}
            assert found["present.0.key"].shape == (2, 1, 7, 2)
            assert np.array_equal(found["present.0.key"][:, :, :5], first["present.0.key"].numpy())
            assert np.array_equal(found["logits"], first["logits"].numpy())  # this graph's logits see the new columns alone


def test_rows_of_an_engines_tensor(bundle: Bundle) -> None:
    with OrtRunner(bundle, "decoder.concat", threads=1) as runner:
        tensor = runner.infer(feeds())["present.0.key"]
        assert isinstance(tensor, OrtTensor)
        chosen = tensor.select([1, 0, 1])
        assert chosen.shape() == [3, 1, 5, 2]
        assert np.array_equal(chosen.numpy(), tensor.numpy()[[1, 0, 1]])


class _Binding:
    """An IO binding that only remembers."""

    def __init__(self) -> None:
        self.outputs: dict[str, str] = {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        pass

    def bind_output(self, name: str, device: str, device_id: int) -> None:
        assert device_id == 0
        self.outputs[name] = device

    def get_outputs(self) -> list[object]:
        return [object() for _ in self.outputs]


class _Session:
    def __init__(self) -> None:
        self.binding = _Binding()

    def io_binding(self) -> _Binding:
        return self.binding

    def run_with_iobinding(self, binding: _Binding) -> None:
        pass


def test_on_cuda_only_what_is_fed_back_stays_there(bundle: Bundle) -> None:
    runner = OrtRunner(bundle, "decoder.concat", backend="ort-cuda")
    runner._session = session = _Session()
    runner.infer(feeds())
    expected = {tensor.name: "cpu" if tensor.name == "logits" else "cuda" for tensor in DECODER.outputs}
    assert session.binding.outputs == expected


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs onnxruntime with CUDA")
def test_cuda_gives_the_cpus_numbers(bundle: Bundle) -> None:
    given = feeds()
    with OrtRunner(bundle, "decoder.concat", backend="ort-cuda") as gpu, OrtRunner(bundle, "decoder.concat", threads=1) as cpu:
        expected = cpu.infer(given)
        for name, tensor in gpu.infer(given).items():
            assert np.allclose(tensor.numpy(), expected[name].numpy(), atol=1e-3)  # TF32 products on Ampere and newer


def test_a_call_that_fails_names_graph_and_shapes(bundle: Bundle) -> None:
    with OrtRunner(bundle, "decoder.concat", threads=1) as runner:
        wide = {**feeds(), "inputs_embeds": np.zeros((2, 2, 5), np.float32)}
        with pytest.raises(RunnerError, match=r"decoder\.concat: onnxruntime failed on .*'inputs_embeds': \[2, 2, 5\]"):
            runner.infer(wide)
        with pytest.raises(RunnerError, match=r"decoder\.concat: onnxruntime failed"):
            runner.infer({name: value for name, value in feeds().items() if name != "inputs_embeds"})
        with pytest.raises(RunnerError, match=r"decoder\.concat: onnxruntime failed"):
            runner.infer({**feeds(), "unknown": np.zeros(1, np.float32)})
        with pytest.raises(RunnerError, match=r"decoder\.concat: onnxruntime failed"):
            runner.infer({**feeds(), "attention_mask": np.ones((2, 5), np.int32)})
        assert runner.infer(feeds())["logits"].shape() == [2, 8]
