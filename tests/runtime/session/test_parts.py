"""The small parts below a session, without an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.errors import DataError, UsageError
from drivekd.images import ImageSettings
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.answers.questions import fill_template, merged_variables
from drivekd.runtime.bundle.graph_contract import past_names, present_names
from drivekd.runtime.decoder.concat import KvCache, left_padded
from drivekd.runtime.session.cameras import camera_tiles
from drivekd.runtime.session.generation import TextStream

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


@given(st.text(max_size=30), st.lists(st.integers(1, 4), max_size=30))
def test_tokens_may_come_several_at_once(text: str, counts: list[int]) -> None:
    data, end = list(text.encode()), 0
    pieces: list[str] = []
    stream = TextStream(utf8, pieces.append)
    for count in counts:
        end = min(len(data), end + count)
        stream.update(data[:end], final=False)
        stream.update(data[:end], final=False)  # a step in which this branch had nothing new
        assert text.startswith("".join(pieces))
    stream.update(data, final=True)
    assert "".join(pieces) == text


def test_a_piece_does_not_cost_more_the_longer_the_answer_is() -> None:
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return utf8(tokens)

    stream = TextStream(decode, lambda piece: None)
    data = list("straße ".encode() * 40)
    for end in range(1, len(data) + 1):
        stream.update(data[:end], final=end == len(data))
    assert longest <= 4  # the last two pieces, of two bytes at most


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


def test_a_deadline_ends_an_answer_when_it_passes_or_nobody_wants_it_any_more() -> None:
    assert Deadline(0).interruption() == "deadline"
    assert Deadline(None).interruption() is None
    assert Deadline(60_000).interruption() is None
    assert Deadline(60_000, lambda: False).interruption() is None
    assert Deadline(60_000, lambda: True).interruption() == Deadline(0, lambda: True).interruption() == "cancelled"
    assert Deadline().elapsed_ms() >= 0


def test_a_deadline_tells_what_is_left() -> None:
    assert Deadline().left_ms() is None
    assert Deadline(0).left_ms() == 0
    left_ms = Deadline(60_000).left_ms()
    assert left_ms is not None and 50_000 < left_ms <= 60_000
