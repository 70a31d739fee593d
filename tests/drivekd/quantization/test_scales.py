"""The scales beside a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from drivekd.errors import CheckpointError
from drivekd.quantization.form import WeightForm
from drivekd.quantization.scales import SCALES_FILE, check_scales, read_scales, write_scales

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


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_is_none_is_refused(tmp_path: Path, wrong: float) -> None:
    scales = torch.ones(2, 2)
    scales[1, 1] = wrong
    write_scales(tmp_path, {"lm_head": scales}, FORMS)
    with pytest.raises(CheckpointError, match="lm_head"):
        read_scales(tmp_path)


@pytest.mark.parametrize(("bits", "block"), [(3, 32), (0, 32), (4, 0), (4, 48)])
def test_a_form_that_no_bundle_has_is_refused(tmp_path: Path, bits: int, block: int) -> None:
    write_scales(tmp_path, {"lm_head": torch.ones(2, 2)}, {"lm_head": WeightForm(bits, block)})
    with pytest.raises(CheckpointError, match=f"lm_head has {bits} bits in blocks of {block}"):
        read_scales(tmp_path)


LAYERS = {f"layers.0.self_attn.{name}": nn.Linear(64, 8) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}


def scales_of(*names: str, columns: int = 2, rows: int = 8) -> dict[str, torch.Tensor]:
    return {f"layers.0.self_attn.{name}": torch.ones(rows, columns) for name in names}


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (scales_of("g_proj"), r"the model has no layer layers\.0\.self_attn\.g_proj"),
        (scales_of("o_proj", columns=4), r"o_proj are \[8, 4\], its weight needs \[8, 2\]"),
        (scales_of("o_proj", rows=1), r"o_proj are \[1, 2\], its weight needs \[8, 2\]"),
        (scales_of("q_proj", "k_proj"), r"are one MatMul, layers\.0\.self_attn\.qkv_proj, but have different forms"),
    ],
)
def test_scales_of_another_model_are_refused(tmp_path: Path, scales: dict[str, torch.Tensor], message: str) -> None:
    """Some would spread over the weight, and be exported."""
    with pytest.raises(CheckpointError, match=message):
        check_scales(tmp_path, scales, dict.fromkeys(scales, WeightForm(4, 32)), LAYERS)
    whole = scales_of("q_proj", "k_proj", "v_proj", "o_proj")
    check_scales(tmp_path, whole, dict.fromkeys(whole, WeightForm(4, 32)), LAYERS)
