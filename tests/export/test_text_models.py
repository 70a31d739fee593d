"""InternVL over a Llama or a Mistral: bundles whose tokens are the model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lively_model import SIZE, lively_checkpoint

from drivekd.export import bundle_from_checkpoint
from drivekd.export.settings import plan_from_options
from drivekd.models.tiny import TinySize
from drivekd.runtime import check_bundle

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize(("text_model", "precision"), [("llama", "fp32"), ("llama", "fp16"), ("mistral", "fp16")])
def test_a_bundle_answers_as_the_model(tmp_path: Path, text_model: str, precision: str) -> None:
    """The writer refuses what is beyond tolerance; fp32, which every export is first, must give every token."""
    size = TinySize(**{**vars(SIZE), "text_model": text_model})
    checkpoint = lively_checkpoint(tmp_path / "checkpoint", size=size)
    assert json.loads((checkpoint / "config.json").read_text())["text_config"]["model_type"] == text_model
    table = bundle_from_checkpoint(checkpoint, tmp_path / "bundle", plan=plan_from_options(precision, [])).parity
    assert {row.graph for row in table.rows} >= {"decoder.concat", "decoder.gqa"}
    replay = check_bundle(tmp_path / "bundle", threads=1).replay
    assert replay is not None and replay.passed
