"""A bundle answers an evaluation as the checkpoint that it was exported from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivekd.errors import DataError
from drivekd.evaluate.answering import open_answerer
from drivekd.evaluate.bundle_answerer import BundleAnswerer
from drivekd.evaluate.checkpoint_answerer import CheckpointAnswerer
from drivekd.sample import Sample

pytestmark = pytest.mark.numerics

MAX_NEW_TOKENS = 4


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Twelve questions about three frames, interleaved."""
    noise = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(noise.integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    return [
        Sample(f"f, record {index}", "planning", f"What should it do at {index} m/s?", "Stop.", (tmp_path / f"{index % 3}.png",))
        for index in range(12)
    ]


def test_texts_equal_the_checkpoints(checkpoint: Path, bundle: Path, samples: list[Sample]) -> None:
    answerer = open_answerer(bundle, max_new_tokens=MAX_NEW_TOKENS)
    assert isinstance(answerer, BundleAnswerer)
    expected = CheckpointAnswerer(checkpoint, batch_size=64, max_new_tokens=MAX_NEW_TOKENS)
    seen: list[tuple[int, int]] = []
    clean = answerer.answers(samples, on_progress=lambda done, total: seen.append((done, total)))
    assert clean == expected.answers(samples)
    assert len(set(clean)) > 3, "the random model must tell prompts apart for this test to mean anything"
    assert seen == [(done, 12) for done in range(1, 13)]
    black = answerer.answers(samples, images="black")
    assert black == expected.answers(samples, images="black")
    assert black != clean


def test_a_missing_image_names_its_record(bundle: Path) -> None:
    sample = Sample("f.json, record 7", "planning", "Is it?", "No.", (bundle / "none.png",), "yesno")
    with pytest.raises(DataError, match=r"f\.json, record 7: images: .*none\.png"):
        open_answerer(bundle).answers([sample])
