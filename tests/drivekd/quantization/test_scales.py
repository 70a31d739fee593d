"""The scales beside a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drivekd.errors import CheckpointError
from drivekd.quantization.form import WeightForm
from drivekd.quantization.scales import SCALES_FILE, read_scales, write_scales

FORMS = {"layers.0.mlp.down_proj": WeightForm(4, 32), "lm_head": WeightForm(8, 64)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    scales = {"layers.0.mlp.down_proj": torch.rand(5, 3) + 0.1, "lm_head": torch.rand(7, 2) + 0.1}
    write_scales(tmp_path, scales, FORMS)
    found, forms = read_scales(tmp_path)
    assert forms == FORMS
    assert all(torch.equal(found[name], scales[name]) for name in scales)


def test_a_checkpoint_without_has_none(tmp_path: Path) -> None:
    assert read_scales(tmp_path) == ({}, {})


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SCALES_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=SCALES_FILE):
        read_scales(tmp_path)


@pytest.mark.parametrize("wrong", [float("nan"), 0.0, -1.0])
def test_a_scale_that_is_none_is_refused(tmp_path: Path, wrong: float) -> None:
    scales = torch.ones(2, 2)
    scales[1, 1] = wrong
    write_scales(tmp_path, {"lm_head": scales}, FORMS)
    with pytest.raises(CheckpointError, match="lm_head"):
        read_scales(tmp_path)
