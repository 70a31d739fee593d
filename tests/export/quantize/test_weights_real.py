"""Rounding a pretrained language model, whose channels differ by orders of magnitude."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drivekd.export import bundle_from_checkpoint
from drivekd.export.parity.language import LanguageRow
from drivekd.export.quantize.frames import Frames, read_frames
from drivekd.export.quantize.weights import image_features, quantize_weights
from drivekd.export.settings import plan_from_options
from drivekd.export.source.source import load_source
from drivekd.models.decoder import run_decoder
from drivekd.quantization.form import WeightForm
from drivekd.quantization.linears import linear_layers
from drivekd.world import WorldSettings, build_world

pytestmark = [pytest.mark.numerics, pytest.mark.real]
LAYERS = ("layers.0.", "layers.1.", "layers.29.")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Road scenes with exact questions and answers, in English."""
    world = tmp_path_factory.mktemp("world")
    settings = WorldSettings(
        train_frames=16, labelled_frames=16, validation_frames=1, test_frames=1, workers=1, contact_sheet=False
    )
    build_world(world / "world", settings)
    return world / "world" / "train.json"


@torch.no_grad()
def hidden_states(source: object, frames: Frames) -> torch.Tensor:
    batch, model = frames.chosen[0], source.model  # type: ignore[attr-defined]
    features = image_features(model, frames, batch)
    return run_decoder(model, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)


def test_three_of_its_layers_lose_less_by_data(real_checkpoint: Path, records: Path) -> None:
    outputs = {}
    for how in ("exact", "nearest", "data"):
        source = load_source(real_checkpoint, None)
        frames = read_frames(records, source.processor, count=2)
        forms = {name: WeightForm(4, 32) for name in linear_layers(source.model) if name.startswith(LAYERS)}
        if how != "exact":
            found = quantize_weights(source.model, forms, None, frames if how == "data" else None, {})
            assert len(found) == 7 * len(LAYERS)
        outputs[how] = hidden_states(source, frames)
    errors = {how: float((outputs[how] - outputs["exact"]).norm()) for how in ("nearest", "data")}
    assert errors["data"] < 0.6 * errors["nearest"], errors


def exported(checkpoint: Path, out: Path, *settings: str) -> LanguageRow:
    (row,) = bundle_from_checkpoint(checkpoint, out, plan=plan_from_options("int4", settings)).language
    return row


@pytest.mark.slow
def test_int4_by_data_keeps_its_english(real_checkpoint: Path, records: Path, tmp_path: Path) -> None:
    """Rounded to the nearest, as every export once was, it lost a quarter of it, and no bundle was written."""
    by_data = exported(real_checkpoint, tmp_path / "data", f"calibration={records}", "int8_inputs=false")
    nearest = exported(real_checkpoint, tmp_path / "nearest")
    assert by_data.tokens > 100
    assert by_data.ratio < 1.05
    assert by_data.agreement > 0.9
    assert by_data.agreement > nearest.agreement
