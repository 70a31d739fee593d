"""The TensorRT runner over a stand-in (fake_tensorrt) that runs the same graphs: same numbers as onnxruntime, K/V that stays on
the device, memory that is given back, and every refusal in words. The last tests hold the stand-in against the real API.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import LIMITS, ORIN, FakeContext, FakeEngine, FakeRuntime, FakeTensorRT, compile_libcuda, write_engines
from small_bundle import write_small_bundle

from drivekd.errors import BundleError, RunnerError
from drivekd.runtime import backends, trt
from drivekd.runtime.bundle import Bundle, read_bundle
from drivekd.runtime.concat import ConcatDecoder
from drivekd.runtime.cuda_memory import CudaMemory, DeviceArray
from drivekd.runtime.embedding import embedding_from_bytes
from drivekd.runtime.ort import OrtRunner
from drivekd.runtime.runner import Runner
from drivekd.runtime.trt import TrtRunner, engine_module

DECODER = "decoder.concat"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    found = read_bundle(write_small_bundle(tmp_path / "bundle"))
    write_engines(found)
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_libcuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def api(bundle: Bundle, library: str, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(bundle, library)
    fake.counters.limit_memory(1 << 40)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(trt, "CudaMemory", partial(CudaMemory, library))
    monkeypatch.setattr(trt, "this_device", lambda: ORIN)
    monkeypatch.setattr(backends, "this_device", lambda: ORIN)
    return fake


@pytest.fixture
def runner(api: FakeTensorRT, bundle: Bundle) -> Iterator[TrtRunner]:
    with TrtRunner(bundle, DECODER) as opened:
        yield opened


def decoder_of(runner: Runner, bundle: Bundle) -> ConcatDecoder:
    manifest = bundle.manifest
    table = embedding_from_bytes(bundle.files["embedding.safetensors"], manifest.embedding, manifest.model, "here")
    return ConcatDecoder(runner, table, manifest.model, manifest.graphs[DECODER])


def feeds(seq: int, past: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kv = {f"past_key_values.0.{part}": rng.normal(size=(batch, 1, past, 2)).astype(np.float32) for part in ("key", "value")}
    return {
        "inputs_embeds": rng.normal(size=(batch, seq, 4)).astype(np.float32),
        "attention_mask": np.ones((batch, past + seq), np.int64),
        "position_ids": np.zeros((batch, seq), np.int64),
        **kv,
    }


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "seq", "past"), [(1, 1, 0), (1, 7, 0), (1, 1, 5), (3, 1, 9), (3, 6, 4), (2, 3, 0), (5, 1, 2)])
def test_one_call_gives_onnxruntimes_numbers(runner: TrtRunner, bundle: Bundle, batch: int, seq: int, past: int) -> None:
    """Also of batches that no profile takes whole: rows of several columns, more rows than branches."""
    given = feeds(seq, past, batch)
    found = runner.infer(given)
    with OrtRunner(bundle, DECODER, threads=1) as plain:
        expected = plain.infer(given)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape() == tensor.shape()
        if batch in (1, 3) and seq == 1:  # the very call that onnxruntime gets
            assert np.array_equal(found[name].numpy(), tensor.numpy())
        else:  # other shapes of one product: sums in another order
            assert np.allclose(found[name].numpy(), tensor.numpy(), atol=1e-5)


def test_a_whole_frame_gives_onnxruntimes_numbers(runner: TrtRunner, bundle: Bundle) -> None:
    """Prefix in two chunks, three ragged questions, steps, a branch that ends."""
    with OrtRunner(bundle, DECODER, threads=1) as plain:
        for left, right in zip(frame(runner, bundle), frame(plain, bundle), strict=True):
            assert np.allclose(left, right, atol=1e-5)


def frame(runner: Runner, bundle: Bundle) -> list[Any]:
    decoder = decoder_of(runner, bundle)
    _, cache = decoder.read([[1, 2, 3, 4, 5]], decoder.empty_cache())
    _, cache = decoder.read([[6, 7]], cache)
    logits, rows = decoder.read([[1], [2, 3, 4], [5, 6]], cache.select([0, 0, 0]))
    found = [logits]
    for step in range(4):
        logits, rows = decoder.step([step, 1, 7], rows)
        found.append(logits)
    logits, rows = decoder.step([2, 3], rows.compact([0, 2]))
    return [*found, logits, *(tensor for row in range(2) for tensor in rows.kv(row))]


def test_vision_runs_on_its_one_profile(api: FakeTensorRT, bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).normal(size=(1, 3, 2, 2)).astype(np.float32)
    with TrtRunner(bundle, "vision") as vision, OrtRunner(bundle, "vision", threads=1) as plain:
        found = vision.infer({"pixel_values": pixels})["image_embeds"].numpy()
        assert np.array_equal(found, plain.infer({"pixel_values": pixels})["image_embeds"].numpy())


def test_a_feed_need_not_be_contiguous(runner: TrtRunner) -> None:
    given = feeds(4, 0)
    expected = runner.infer(given)["logits"].numpy()
    turned = {**given, "inputs_embeds": np.asfortranarray(given["inputs_embeds"])}
    assert np.array_equal(runner.infer(turned)["logits"].numpy(), expected)


def test_rows_with_the_batch_behind_another_axis_are_cut_there() -> None:
    """Qwen2.5-VL's position_ids are [3, B, T]."""
    positions = np.arange(24).reshape(3, 2, 4)
    assert np.array_equal(trt._row(positions, 1, 1), positions[:, 1:2])


# --- where things run and lie -----------------------------------------------------------------------------------------


def test_a_step_runs_in_the_decode_profile_and_columns_in_prefill(runner: TrtRunner, api: FakeTensorRT) -> None:
    prefill, decode = api.engines[0].contexts
    runner.infer(feeds(7, 0))
    runner.infer(feeds(1, 0))  # no past: decode's own begins at 1
    assert (prefill.runs, decode.runs) == (2, 0)
    runner.infer(feeds(1, 7, batch=3))
    runner.infer(feeds(1, 7, batch=1))
    assert (prefill.runs, decode.runs) == (2, 2)
    runner.infer(feeds(4, 7, batch=3))
    assert (prefill.runs, decode.runs) == (5, 2)


def test_contexts_have_their_own_profile_and_one_scratch(runner: TrtRunner, api: FakeTensorRT) -> None:
    contexts = api.engines[0].contexts
    assert [context.profile for context in contexts] == [0, 1]
    assert len({context.scratch for context in contexts}) == 1


def test_keys_and_values_stay_on_the_device(runner: TrtRunner, api: FakeTensorRT) -> None:
    outputs = runner.infer(feeds(5, 3))
    sent, fetched = api.counters.to_device, api.counters.to_host
    given = {**feeds(1, 8), **fed_back(outputs)}
    outputs = runner.infer(given)
    logits = outputs["logits"].numpy()
    small = sum(value.nbytes for value in given.values() if isinstance(value, np.ndarray))
    assert api.counters.to_device - sent == small
    assert api.counters.to_host - fetched == logits.nbytes


def fed_back(outputs: Any) -> dict[str, Any]:
    return {name.replace("present", "past_key_values"): value for name, value in outputs.items() if name != "logits"}


def test_rows_are_copied_on_the_device(runner: TrtRunner, api: FakeTensorRT) -> None:
    tensor = runner.infer(feeds(1, 6, batch=3))["present.0.key"]
    fetched = api.counters.to_host
    chosen = tensor.select([2, 0, 0])  # type: ignore[attr-defined]
    assert api.counters.to_host == fetched
    assert np.array_equal(chosen.numpy(), tensor.numpy()[[2, 0, 0]])
    assert chosen.shape() == [3, 1, 7, 2]


def test_steps_take_no_new_memory(runner: TrtRunner, api: FakeTensorRT) -> None:
    """Past and present change places; K/V that grows stays in its size class for many steps."""
    outputs = runner.infer(feeds(100, 300))
    for past in (400, 401):
        outputs = runner.infer({**feeds(1, past), **fed_back(outputs)})
    before = api.counters.allocations
    for past in range(402, 410):
        outputs = runner.infer({**feeds(1, past), **fed_back(outputs)})
    assert api.counters.allocations == before


@pytest.mark.parametrize("num_bytes", [0, 1, 255, 256, 257, 4095, 4096, 4097, 10_000, 1_344_000, (1 << 30) + 1])
def test_a_block_is_large_enough_and_wastes_an_eighth_at_most(num_bytes: int) -> None:
    from drivekd.runtime.cuda_memory import _size_class

    size = _size_class(num_bytes)
    assert size >= max(num_bytes, 256) and size % 256 == 0
    assert size - num_bytes <= max(256, num_bytes / 8)


def test_everything_is_given_back(api: FakeTensorRT, bundle: Bundle) -> None:
    before = api.counters.live_bytes, api.counters.retained, api.counters.streams
    with TrtRunner(bundle, DECODER) as runner:
        kept = runner.infer(feeds(3, 0))["present.0.key"]
        assert api.counters.live_bytes > before[0]
    assert (api.counters.live_bytes, api.counters.retained, api.counters.streams) == before
    with pytest.raises(RunnerError, match="closed"):
        kept.numpy()
    with pytest.raises(RunnerError, match=r"decoder\.concat: the session is closed"):
        runner.infer(feeds(3, 0))
    runner.__exit__(None, None, None)


def test_a_second_thread_works_in_the_same_context(runner: TrtRunner) -> None:
    """A session is loaded in one thread and used in another."""
    expected = runner.infer(feeds(3, 0))["logits"].numpy()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(runner.infer(feeds(3, 0))["logits"].numpy()))
    thread.start()
    thread.join()
    assert np.array_equal(found[0], expected)


# --- what is refused --------------------------------------------------------------------------------------------------


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


# --- the real API -----------------------------------------------------------------------------------------------------

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
    from drivekd.export.trt import engines_from_bundle

    bundle = read_bundle(write_small_bundle(tmp_path / "bundle"))
    engines_from_bundle(bundle.path)
    with TrtRunner(bundle, DECODER) as engine, OrtRunner(bundle, DECODER, threads=1) as plain:
        for left, right in zip(frame(engine, bundle), frame(plain, bundle), strict=True):
            assert np.allclose(left, right, atol=1e-3)  # TF32 products on Ampere and newer
        assert isinstance(engine.infer(feeds(1, 3))["present.0.key"], DeviceArray)
