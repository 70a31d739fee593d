"""layers.npz, which bisect compares with: what is recorded of every layer, where, and how large that is."""

from __future__ import annotations

import numpy as np
import pytest
from bisect_cases import recorded

from drivekd.export.source.layer_values import (
    LAYERS_FILE,
    GraphValues,
    LayerValues,
    layer_values_from_bytes,
    layer_values_to_bytes,
    probe_places,
)
from drivekd.export.source.source import Source
from drivekd.runtime.bundle.reader import Bundle

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


def test_the_recording_is_the_same_twice_and_fits_its_graphs(deep_source: Source, deep: Bundle) -> None:
    assert recorded(deep_source) == deep.files[LAYERS_FILE]
    values = layer_values_from_bytes(deep.files[LAYERS_FILE], "")
    assert values.vision.layers.shape == (10, 6, 32)
    assert values.decoder.layers.shape == (12, 6, 32)
    assert values.inputs_embeds.shape == (len(values.input_ids), 32)
    assert (values.input_ids == -1).sum() == deep_source.processor.chat.tokens_per_image
    assert layer_values_to_bytes(values) == deep.files[LAYERS_FILE]


def test_the_1b_model_takes_less_than_2_mb() -> None:
    """InternVL3-1B: 24 vision layers of 1,024, 24 decoder layers of 896, 256 tokens an image and 70 of text, 151,674 words."""
    vision = GraphValues(np.zeros((24, 6, 1024), np.float32), np.zeros((6, 896), np.float32))
    decoder = GraphValues(np.zeros((24, 6, 896), np.float32), np.zeros((1, len(probe_places(151_674, 2048))), np.float32))
    length = 256 + 70
    values = LayerValues(vision, decoder, np.zeros((length, 896), np.float32), np.zeros(length, int), np.zeros((1, length), int))
    assert 1e6 < len(layer_values_to_bytes(values)) < 2e6


def test_probes_hold_the_first_and_the_last_place() -> None:
    for total in (1, 2, 5, 6, 7, 100, 1025):
        places = probe_places(total)
        assert (places[0], places[-1]) == (0, total - 1)
        assert len(places) == min(6, total)
        assert (np.diff(places) > 0).all()
