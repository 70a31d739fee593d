"""BitError, ColorQuant, H.265: what a link loses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from drivekd.evaluate.corruptions import transmission
from drivekd.evaluate.corruptions.draws import generator
from drivekd.images import RGBImage


def scene() -> RGBImage:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((320, 240)))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_color_quant_leaves_the_highest_bits(severity: int) -> None:
    made = transmission.color_quant(scene(), severity, generator(0))
    assert np.array_equal(made, scene().astype(int) // 2 ** (3 + severity) * 2 ** (3 + severity))
    assert len(np.unique(made)) <= 2 ** (5 - severity)


def test_errors_of_a_worse_severity_begin_with_those_of_a_milder_one() -> None:
    frames = [bytes(300_000), bytes(20), bytes(50_000)]
    spoiled = [
        transmission._with_errors(frames, bytes_an_error, 1, generator(7)) for bytes_an_error in transmission._BYTES_AN_ERROR
    ]
    places = [{(f, i) for f, frame in enumerate(one) for i, byte in enumerate(frame) if byte} for one in spoiled]
    assert [len(found) for found in places] == sorted(len(found) for found in places)
    assert all(milder <= worse for milder, worse in pairwise(places))
    # 70 errors of which one in 255 draws the byte that stood there
    assert 60 <= len(places[-1]) <= 70
    assert all(index >= 48 for _, index in places[-1]), "headers are spared"
    assert all(len(one[i]) == len(frames[i]) for one in spoiled for i in range(3))


def test_frames_of_headers_alone_are_left_alone() -> None:
    assert transmission._with_errors([bytes(10)], 5_000, 1, generator(0)) == [bytes(10)]


@pytest.mark.parametrize("available", [True, False], ids=["PyAV", "stand-in"])
def test_codecs_keep_the_picture_where_nothing_is_lost(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a severity changes is the severity's: mild compression, and a stream without an error."""
    monkeypatch.setattr(transmission.codecs, "available", lambda: available)
    mild = transmission.h265(scene(), 1, generator(0)).astype(int)
    assert np.abs(mild - scene()).mean() < 8
    monkeypatch.setattr(transmission, "_with_errors", lambda frames, *_: frames)
    whole = transmission.bit_error(scene(), 5, generator(0)).astype(int)
    assert np.abs(whole - scene()).mean() < 8
