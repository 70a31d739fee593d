"""Bundles of pretrained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bisect_cases import GQA, change, edited

from drivekd.export import bundle_from_checkpoint
from drivekd.export.parity.bisect import bisect
from drivekd.export.settings import plan_from_options
from drivekd.runtime import check_bundle, read_bundle

pytestmark = [pytest.mark.numerics, pytest.mark.real]


def agreement(bundle: Path) -> dict[str, float]:
    """The share of tokens that are the model's, by graph and case."""
    rows = read_bundle(bundle).manifest.parity
    return {f"{row['graph']}, {row['case']}": row["argmax_agreement"] for row in rows if "argmax_agreement" in row}


def test_fp32_says_every_token_of_the_model(real_bundle: Path) -> None:
    shares = agreement(real_bundle)
    assert len(shares) >= 6
    assert set(shares.values()) == {1.0}
    replay = check_bundle(real_bundle).replay
    assert replay is not None and replay.passed
    assert replay.tokens_compared > 20


@pytest.mark.slow
def test_fp16_does_not_overflow(real_checkpoint: Path, tmp_path: Path) -> None:
    """Its activations reach far beyond a random model's."""
    bundle_from_checkpoint(real_checkpoint, tmp_path / "bundle", plan=plan_from_options("fp16", []))
    assert min(agreement(tmp_path / "bundle").values()) >= 0.9
    replay = check_bundle(tmp_path / "bundle").replay
    assert replay is not None and replay.passed


@pytest.mark.slow
def test_a_fault_in_one_of_thirty_layers_is_named(real_bundle: Path) -> None:
    """And none where none is: activations of pretrained layers differ by orders of magnitude."""
    bundle = read_bundle(real_bundle)
    assert bisect(bundle).passed
    report = bisect(edited(bundle, GQA, change("layers.17.mlp.down_proj.weight", np.flipud)))
    assert report.first is not None
    assert (report.first.graph, report.first.value) == (GQA, "layers.17.output")
