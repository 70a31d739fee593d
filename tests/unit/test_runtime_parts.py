"""The small parts below a session, without an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.errors import DataError, RunnerError, UsageError
from drivekd.images import ImageSettings
from drivekd.runtime.concat import left_padded
from drivekd.runtime.deadline import Deadline
from drivekd.runtime.kv_cache import KvCache, past_names, present_names
from drivekd.runtime.ort import ort_backend
from drivekd.runtime.prefix import camera_tiles
from drivekd.runtime.questions import fill_template, merged_variables
from drivekd.runtime.sampling import greedy, top2_margin
from drivekd.runtime.text_stream import TextStream

IMAGE = np.zeros((4, 6, 3), np.uint8)


def utf8(tokens: Sequence[int]) -> str:
    """A byte-level tokenizer: one token a byte."""
    return bytes(tokens).decode(errors="replace")


@given(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)))
def test_pieces_concatenate_to_the_text(data: bytes) -> None:
    pieces: list[str] = []
    stream = TextStream(utf8, pieces.append)
    for end in range(1, len(data) + 1):
        stream.update(list(data[:end]), final=False)
    stream.update(list(data), final=True)
    assert "".join(pieces) == utf8(list(data))
    assert all(pieces)


def test_a_character_is_not_shown_half() -> None:
    pieces: list[str] = []
    stream = TextStream(utf8, pieces.append)
    data = list("ä€".encode())
    for end in range(1, len(data) + 1):
        stream.update(data[:end], final=False)
    assert pieces == ["ä", "€"]


def test_greedy_is_argmax_with_its_log_probability() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32) * 30
    tokens, logprobs = greedy(logits)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    assert tokens.tolist() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(logprobs, expected.max(axis=1), atol=1e-6)  # exp in float32
    assert logprobs.dtype == np.float64
    assert np.isfinite(greedy(logits * 1e30)[1]).all(), "no overflow"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_stop_the_answer(bad: float) -> None:
    logits = np.zeros((2, 5), np.float32)
    logits[1, 3] = bad
    with pytest.raises(RunnerError, match="not finite"):
        greedy(logits)


def test_margin_is_the_distance_of_the_best_two() -> None:
    assert top2_margin(np.asarray([[1, 5, 3], [2, 2, 0]], np.float32)).tolist() == [2, 0]


def test_left_padding_ends_together() -> None:
    ids, mask = left_padded([[1, 2, 3], [4]])
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_cache_selects_rows_and_counts_real_tokens() -> None:
    tensor = np.arange(12, dtype=np.float32).reshape(2, 1, 3, 2)
    cache = KvCache((tensor, tensor), np.asarray([[1, 1, 1], [0, 1, 1]]), np.asarray([3, 2]))
    assert cache.num_tokens.tolist() == [3, 2]
    chosen = cache.select([1, 1, 0])
    assert chosen.num_tokens.tolist() == chosen.next_positions.tolist() == [2, 2, 3]
    assert np.array_equal(np.asarray(chosen.tensors[0]), tensor[[1, 1, 0]])
    assert list(cache.feeds()) == past_names(1) == ["past_key_values.0.key", "past_key_values.0.value"]
    assert present_names(1) == ["present.0.key", "present.0.value"]


def test_templates_take_values_and_nothing_else() -> None:
    assert fill_template("At {ego_speed_mps} m/s?", {"ego_speed_mps": 8.5}) == "At 8.5 m/s?"
    assert fill_template("{x.__class__} {} {0} {X}", {"x": 1}) == "{x.__class__} {} {0} {X}"
    assert fill_template("{a}", {"a": "{b}", "b": 1}) == "{b}", "a value is not a template"
    with pytest.raises(UsageError, match="needs the variable 'b'"):
        fill_template("{a} {b}", {"a": 1})


def test_an_unknown_variable_is_not_ignored() -> None:
    assert merged_variables({"speed": 8}, {"speed": 3}) == {"speed": 3}
    assert merged_variables({"speed": 8}, None) == {"speed": 8}
    with pytest.raises(UsageError, match=r"variable 'sped' is unknown to this bundle; it has: speed"):
        merged_variables({"speed": 8}, {"sped": 3})


def test_cameras_come_in_the_bundles_order() -> None:
    settings = ImageSettings(8)
    images = {"B": IMAGE, "A": IMAGE}
    assert list(camera_tiles(images, ("A", "B", "C"), settings)) == ["A", "B"]
    assert list(camera_tiles(images, (), settings)) == ["B", "A"]
    with pytest.raises(UsageError, match="camera 'B' is unknown"):
        camera_tiles(images, ("A",), settings)
    with pytest.raises(UsageError, match="no images"):
        camera_tiles({}, (), settings)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5), (5, 5, 4), (1, 5, 5, 3)])
def test_an_image_that_is_none_names_its_camera(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="CAM_FRONT"):
        camera_tiles({"CAM_FRONT": np.zeros(shape, np.uint8)}, (), ImageSettings(8))
    with pytest.raises(DataError, match="CAM_FRONT"):
        camera_tiles({"CAM_FRONT": np.zeros((4, 4, 3), np.float32)}, (), ImageSettings(8))  # type: ignore[dict-item]


def test_a_deadline_expires() -> None:
    assert Deadline(0).expired()
    assert not Deadline(None).expired()
    assert not Deadline(60_000).expired()
    assert Deadline().elapsed_ms() >= 0


def test_backends_by_name() -> None:
    assert ort_backend("auto") == "ort-cpu"
    assert ort_backend("ort-cuda") == "ort-cuda"
    with pytest.raises(UsageError, match=r"backend 'trt' is unknown; this version has: auto, ort-cpu, ort-cuda"):
        ort_backend("trt")
