"""The TensorRT runner over a stand-in (fake_tensorrt) that runs the same graphs: same numbers as onnxruntime, K/V that stays on
the device, memory that is given back.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeTensorRT
from trt_cases import DECODER, feeds, frame

from drivekd.errors import RunnerError
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.engine import trt
from drivekd.runtime.engine.ort import OrtRunner
from drivekd.runtime.engine.trt import TrtRunner

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
    from drivekd.runtime.engine.cuda import _size_class

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
