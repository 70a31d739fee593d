"""The settings that docs/distillation.md shows are those of a run, word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from places import ROOT
from tiny_run import TinyRun

from drivekd.config import QuantizationConfig, load_config
from drivekd.distill.training.train import train
from drivekd.quantization.scales import read_scales

pytestmark = pytest.mark.numerics

BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8"), flags=re.DOTALL)
(BLOCK,) = (block for block in BLOCKS if "quantization:" in block)


def test_the_pages_quantization_trains(tiny_run: TinyRun, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"base: {tiny_run.yaml}\n{BLOCK}")
    final = train(load_config(path, ["training.steps=1"]), tmp_path / "run").final
    assert {form.bits for form in read_scales(final)[1].values()} == {4, 8}


def test_the_page_shows_every_setting_at_its_default() -> None:
    assert yaml.safe_load(BLOCK)["student"]["quantization"] == QuantizationConfig().model_dump()
