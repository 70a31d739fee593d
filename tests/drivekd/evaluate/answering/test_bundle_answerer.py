"""A bundle answers an evaluation as the checkpoint that it was exported from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from drivekd.errors import DataError
from drivekd.evaluate.answering import AnswererSettings, Pictures, open_answerer
from drivekd.evaluate.answering.bundle_answerer import BundleAnswerer
from drivekd.runtime.answers.schemas import default_schemas, valid_answer
from drivekd.sample import CAPABILITIES, Sample

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
    settings = AnswererSettings(max_new_tokens=MAX_NEW_TOKENS)
    answerer, expected = open_answerer(bundle, settings), open_answerer(checkpoint, settings)
    assert isinstance(answerer, BundleAnswerer)
    seen: dict[int, str] = {}
    clean = answerer.answers(samples, on_answer=lambda i, given: seen.update({i: given.text}))
    exact = expected.answers(samples)
    texts = [given.text for given in clean]
    assert texts == [given.text for given in exact]
    assert [(given.tokens, given.finish_reason) for given in clean] == [(given.tokens, given.finish_reason) for given in exact]
    for given, other in zip(clean, exact, strict=True):
        assert given.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
    assert len(set(texts)) > 3, "the random model must tell prompts apart for this test to mean anything"
    assert [seen[i] for i in range(12)] == texts
    black = [given.text for given in answerer.answers(samples, pictures=Pictures("NoImage"))]
    assert black == [given.text for given in expected.answers(samples, pictures=Pictures("NoImage"))]
    assert black != texts


def test_a_budget_beyond_the_models_positions_ends_there(bundle: Path, samples: list[Sample]) -> None:
    given = open_answerer(bundle, AnswererSettings(max_new_tokens=10**6)).answers(samples[:1])
    assert given[0].finish_reason == "stop" or given[0].tokens > MAX_NEW_TOKENS


def test_a_missing_image_names_its_record(bundle: Path) -> None:
    sample = Sample("f.json, record 7", "planning", "Is it?", "No.", (bundle / "none.png",), "yesno")
    with pytest.raises(DataError, match=r"f\.json, record 7: images: .*none\.png"):
        open_answerer(bundle).answers([sample])


def test_answers_as_json_equal_the_checkpoints(checkpoint: Path, bundle: Path, samples: list[Sample]) -> None:
    """Asked with the records' own questions, under their capability's schema; cut ones are closed alike."""
    asked = [replace(sample, capability=CAPABILITIES[index % 3]) for index, sample in enumerate(samples)]
    for budget in (5, 40):
        settings = AnswererSettings(max_new_tokens=budget, structured=True, batch_size=5)
        given = open_answerer(bundle, settings).answers(asked)
        exact = open_answerer(checkpoint, settings).answers(asked)
        assert [one.text for one in given] == [one.text for one in exact]
        assert [(one.tokens, one.finish_reason) for one in given] == [(one.tokens, one.finish_reason) for one in exact]
        for one, other in zip(given, exact, strict=True):
            assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
        schemas = default_schemas(())
        for sample, one in zip(asked, given, strict=True):
            assert valid_answer(schemas[sample.capability], json.loads(one.text)) is None
    assert len({one.text for one in given}) > 3


def test_a_capability_without_a_schema_names_its_record(checkpoint: Path, samples: list[Sample]) -> None:
    asked = [replace(samples[0], capability=cast(Any, "steering"))]
    with pytest.raises(DataError, match="record 0: capability 'steering' has no schema"):
        open_answerer(checkpoint, AnswererSettings(structured=True)).answers(asked)
