"""Exported graphs equal the model; a graph that does not is never written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import drivekd.export.bundle as writer
from drivekd.errors import ExportError
from drivekd.export import ParityTable, bundle_from_checkpoint
from drivekd.export.graphs import causal_mask, grouped_attention
from drivekd.export.parity import parity_row, parity_table


def test_every_output_is_within_its_limit(exported: tuple[Path, ParityTable]) -> None:
    _, table = exported
    assert table.passed
    outputs = {(row.graph, row.output) for row in table.rows}
    present = {("decoder", f"present.{layer}.{part}") for layer in range(2) for part in ("key", "value")}
    assert outputs == {("vision", "image_embeds"), ("decoder", "logits"), ("decoder", "tokens")} | present
    assert max(row.max_abs for row in table.rows) < 1e-4  # fp32 against fp32; measured 2e-5 on these enlarged weights
    assert [row.argmax_agreement for row in table.rows if row.argmax_agreement is not None] == [1.0, 1.0, 1.0]


@pytest.mark.usefixtures("ready_graphs")
def test_a_changed_weight_fails_and_writes_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = writer._write_graphs

    def export_then_change(source: writer.Source, staging: Path) -> object:
        graphs = export(source, staging)
        with torch.no_grad():
            source.model.model.language_model.layers[1].mlp.down_proj.weight[3, 5] += 0.5
        return graphs

    monkeypatch.setattr(writer, "_write_graphs", export_then_change)
    shown: list[ParityTable] = []
    with pytest.raises(ExportError, match=r"parity failed in \d+ of \d+ outputs, no bundle was written"):
        bundle_from_checkpoint(checkpoint, tmp_path / "bundle", on_parity=shown.append)
    assert list(tmp_path.iterdir()) == []
    assert not shown[0].passed
    assert not shown[0].rows[0].passed, "the worst row comes first"


def test_nan_fails() -> None:
    expected = np.ones((2, 3), np.float32)
    found = expected.copy()
    found[0, 0] = np.nan
    good = parity_row("decoder", "case", "logits", expected, expected, 1e-4)
    bad = parity_row("decoder", "case", "logits", expected, found, 1e-4)
    table = parity_table([good, bad])
    assert good.passed
    assert not table.passed
    assert table.rows[0] is bad


def test_a_disagreeing_token_fails() -> None:
    same = np.ones((2, 3), np.float32)
    assert not parity_row("decoder", "case", "logits", same, same, 1e-4, argmax_agreement=0.99).passed


def test_an_empty_table_has_not_passed() -> None:
    assert not parity_table([]).passed


def test_grouped_attention_equals_repeated_heads() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 3, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = causal_mask(torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]]), 3)
    found, _ = grouped_attention(torch.nn.Identity(), query, key, value, mask, 8**-0.5)
    repeated = [tensor.repeat_interleave(3, dim=1) for tensor in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)  # fp32 rounding


def test_a_row_of_padding_stays_finite() -> None:
    mask = causal_mask(torch.tensor([[0, 0, 0, 1]]), 4)
    scores = torch.randn(1, 1, 4, 4) - 5
    assert torch.isfinite((scores + mask).softmax(-1)).all()
