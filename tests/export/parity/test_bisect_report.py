"""What bisect says: its report of a bundle on disk, its judgement of errors, and what it finds missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from bisect_cases import FAULTS, GQA, VISION, edited

from drivekd.errors import BundleError, UsageError
from drivekd.export.parity import bisect as bisecting
from drivekd.export.parity import probed_graph
from drivekd.export.parity.bisect import HEADER, STEP, BisectReport, bisect, bisect_bundle, relative_error
from drivekd.export.source.layer_values import LAYERS_FILE
from drivekd.runtime.bundle.reader import Bundle

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


def test_a_bundle_on_disk(deep: Bundle) -> None:
    """bisect_bundle verifies first: what it runs is what the digests say."""
    report = bisect_bundle(deep.path, threads=1)
    assert report.passed
    assert report.bundle.startswith("sha256:")
    rows = report.table()
    assert all(len(row) == len(HEADER) for row in rows)
    assert rows[0][:2] == ["vision", "vision.layers.0.output"]
    assert report.verdict == f"every one of {len(rows)} values is within its tolerance"
    assert report.to_json()["first"] is None


def test_what_is_missing_is_said(deep: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: data for name, data in deep.files.items() if name != LAYERS_FILE}
    with pytest.raises(BundleError, match=r"layers.npz is missing, so there is nothing to compare layers with"):
        bisect(dataclasses.replace(deep, files=without), threads=1)
    with pytest.raises(BundleError, match=r"layers.npz cannot be read"):
        bisect(dataclasses.replace(deep, files={**deep.files, LAYERS_FILE: b"PK"}), threads=1)
    renamed = edited(deep, GQA, _forget_names)
    with pytest.raises(BundleError, match=r"decoder.gqa.onnx has no value 'layers.0.output' \(12 of 13 are missing\)"):
        bisect(renamed, threads=1)
    with pytest.raises(BundleError, match="not a bundle directory"):
        bisect_bundle(tmp_path / "none")
    monkeypatch.setattr(probed_graph.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'drivekd\[export\]'"):
        bisect_bundle(deep.path)


def _forget_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name.startswith("layers.") and name.endswith(".output"):
                    names[index] = name.replace("output", "hidden")


def test_the_error_of_an_array() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(expected, expected + np.array([[0, 0], [0.5, 0]], np.float32)) == pytest.approx(0.5)  # of its own row
    for broken in (np.full_like(expected, np.nan), np.full_like(expected, np.inf), expected[:1]):
        assert relative_error(expected, broken) == float("inf")


@pytest.mark.parametrize("precision", STEP)
def test_rounding_that_adds_up_is_healthy_and_a_jump_is_not(precision: str) -> None:
    """Property: errors that grow by half a step a layer, in squares, are never beyond; ten steps at once always are."""
    step = STEP[precision]
    names = [f"layers.{layer}.output" for layer in range(48)]
    healthy = [0.5 * step * (layer + 1) ** 0.5 for layer in range(48)]
    assert {row.verdict for row in bisecting.judged_rows("decoder.gqa", names, precision, healthy)} == {"ok"}
    for place in (0, 20, 47):
        jumped = [error + 10 * step * (layer >= place) for layer, error in enumerate(healthy)]
        rows = bisecting.judged_rows("decoder.gqa", names, precision, jumped)
        assert [row.verdict for row in rows].index("BEYOND") == place


def test_a_report_is_a_table_for_a_person(deep: Bundle) -> None:
    report: BisectReport = bisect(edited(deep, VISION, FAULTS[2][3]), threads=1)
    rows = {row[1]: row for row in report.table() if row[0] == "vision"}
    assert rows["vision.layers.1.output"][4] == "ok"
    assert rows["vision.layers.2.output"][4] == "BEYOND"
    assert rows["image_embeds"][4] == "follows"
    stated = report.to_json()
    assert (stated["passed"], stated["first"]["value"]) == (False, "vision.layers.2.output")
