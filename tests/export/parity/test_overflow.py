"""A layer that float16 cannot hold is refused at export and named; left in float32 it passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bisect_cases import CORPUS, WORDS

from drivekd.errors import ExportError
from drivekd.export import bundle_from_checkpoint
from drivekd.export.settings import plan_from_options
from drivekd.models.tiny import TinySize, build_tiny, train_tokenizer, write_checkpoint

pytestmark = pytest.mark.numerics

SMALL = TinySize(vision_layers=1, vision_width=32, language_layers=3, language_width=32, attention_heads=2, image_size_px=56)


def write_enlarged(folder: Path, up: str, down: str, factor: float) -> Path:
    """What `up` makes is larger, and made smaller again."""
    tokenizer = train_tokenizer(CORPUS, WORDS, 300)
    model = build_tiny(SMALL, tokenizer, 0)
    with torch.no_grad():
        model.get_parameter(f"{up}.weight").mul_(factor)
        model.get_parameter(f"{down}.weight").div_(factor)
    write_checkpoint(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function, but layer 1's MLP computes with numbers 2^17 times as large in between."""
    mlp = "model.language_model.layers.1.mlp"
    return write_enlarged(tmp_path_factory.mktemp("enlarged"), f"{mlp}.up_proj", f"{mlp}.down_proj", 2.0**17)


@pytest.mark.parametrize(
    ("precision", "overrides", "way"),
    [
        ("fp16", [], r"layer 1 in fp32; node layers\.1\.mlp\.\S+ .*; export again with --set 'exclude=\[layers\.1\.\*\]'"),
        ("int8", ["activations=fp16"], r"layer 1 in fp32; .*; export again with --set activations=fp32"),
    ],
)
def test_a_layer_beyond_float16_is_refused_and_named(
    enlarged: Path, tmp_path: Path, precision: str, overrides: list[str], way: str
) -> None:
    plan = plan_from_options(precision, ["dialects=[gqa]", *overrides])
    with pytest.raises(ExportError, match=rf"decoder\.gqa in {precision} has values beyond 65,520.* leave {way}"):
        bundle_from_checkpoint(enlarged, tmp_path / "bundle", plan=plan)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(("precision", "overrides"), [("fp16", ["exclude=[layers.1.*]"]), ("int8", ["activations=fp32"])])
def test_the_way_out_leads_out(enlarged: Path, tmp_path: Path, precision: str, overrides: list[str]) -> None:
    plan = plan_from_options(precision, ["dialects=[gqa]", *overrides])
    assert bundle_from_checkpoint(enlarged, tmp_path / "bundle", plan=plan).parity.passed


def test_a_layer_of_the_vision_tower_is_named_as_well(tmp_path: Path) -> None:
    layer = "model.vision_tower.encoder.layer.0.mlp"
    checkpoint = write_enlarged(tmp_path / "checkpoint", f"{layer}.fc1", f"{layer}.fc2", 2.0**18)
    with pytest.raises(ExportError, match=r"vision in fp16 has values beyond 65,520.* leave vision layer 0 in fp32; .*exclude"):
        bundle_from_checkpoint(checkpoint, tmp_path / "bundle", plan=plan_from_options("fp16", ["dialects=[gqa]"]))
