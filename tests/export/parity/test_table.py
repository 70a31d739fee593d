"""Exported graphs equal the model; a graph that does not is never written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import drivekd.export.bundle as writer
from drivekd.errors import ExportError
from drivekd.export import ParityTable, bundle_from_checkpoint
from drivekd.export.graphs.graphs import causal_mask
from drivekd.export.parity.table import parity_row, parity_table
from drivekd.runtime.bundle.manifest import GraphSpec

pytestmark = pytest.mark.numerics


def test_every_output_is_within_its_limit(exported: tuple[Path, ParityTable]) -> None:
    _, table = exported
    assert table.passed
    for dialect in ("gqa", "concat"):
        rows = [row for row in table.rows if row.graph == f"decoder.{dialect}"]
        assert {row.output.rpartition(".")[2] for row in rows} == {"logits", "key", "value", "tokens"}
        assert [row.argmax_agreement for row in rows if row.argmax_agreement is not None] == [1.0, 1.0, 1.0]
    assert {row.output for row in table.rows if row.graph == "vision"} == {"image_embeds"}
    assert max(row.max_abs for row in table.rows) < 1e-4  # fp32 against fp32; measured 2e-5 on these enlarged weights


@pytest.mark.usefixtures("ready_graphs")
def test_a_changed_weight_fails_and_writes_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = writer.take_reference

    def change_then_take(model: Any, *args: Any) -> object:
        with torch.no_grad():
            model.model.language_model.layers[1].mlp.down_proj.weight[3, 5] += 0.5
        return take(model, *args)

    monkeypatch.setattr(writer, "take_reference", change_then_take)
    shown: list[ParityTable] = []
    with pytest.raises(ExportError, match=r"parity failed in \d+ of \d+ outputs, no bundle was written"):
        bundle_from_checkpoint(checkpoint, tmp_path / "bundle", on_parity=shown.append)
    assert list(tmp_path.iterdir()) == []
    assert not shown[0].passed
    assert not shown[0].rows[0].passed, "the worst row comes first"


FP32 = GraphSpec("decoder.onnx", None, (), (), atol=1e-4)


def test_nan_fails() -> None:
    expected = np.ones((2, 3), np.float32)
    found = expected.copy()
    found[0, 0] = np.nan
    good = parity_row("decoder", FP32, "case", "logits", expected, expected)
    bad = parity_row("decoder", FP32, "case", "logits", expected, found)
    table = parity_table([good, bad])
    assert good.passed
    assert not table.passed
    assert table.rows[0] is bad


def test_a_disagreeing_token_fails_in_fp32_alone() -> None:
    same = np.ones((2, 3), np.float32)
    int4 = dataclasses.replace(FP32, precision="int4")
    assert not parity_row("decoder", FP32, "case", "logits", same, same, argmax_agreement=0.99).passed
    assert parity_row("decoder", int4, "case", "logits", same, same, argmax_agreement=0.99).passed


def test_an_unrelated_output_fails_in_every_precision() -> None:
    """Each value within a wide limit, and the whole of it nonsense."""
    rng = np.random.default_rng(0)
    expected, found = rng.normal(size=(2, 500)).astype(np.float32), rng.normal(size=(2, 500)).astype(np.float32)
    for precision in ("fp16", "int8", "int4"):
        wide = dataclasses.replace(FP32, precision=precision, atol=10.0)
        assert not parity_row("decoder", wide, "case", "logits", expected, found).passed
        assert parity_row("decoder", wide, "case", "logits", expected, expected * np.float32(1.005)).passed


def test_an_empty_table_has_not_passed() -> None:
    assert not parity_table([]).passed


def test_a_row_of_padding_stays_finite() -> None:
    mask = causal_mask(torch.tensor([[0, 0, 0, 1]]), 4)
    scores = torch.randn(1, 1, 4, 4) - 5
    assert torch.isfinite((scores + mask).softmax(-1)).all()
