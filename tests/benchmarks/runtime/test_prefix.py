"""The prefix benchmark from the command line, at a size for seconds; its figures mean nothing here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from command_fixtures import RunBenchmark, SmallExport

pytestmark = pytest.mark.e2e

IMAGES = 3


def test_prefix_counts_what_changed(small_export: SmallExport, run_benchmark: RunBenchmark) -> None:
    flags = ("--bundle", small_export.bundle, "--images", IMAGES, "--frames", 2, "--threads", 1)
    found = run_benchmark("-m", "benchmarks.runtime.prefix", *flags).rows
    rows = {row["changed"]: row for row in found}
    assert list(rows) == ["0", "1", "2", "3", "first alone"]
    for changed in range(IMAGES + 1):
        assert rows[str(changed)]["images_encoded"] == changed
        assert len(rows[str(changed)]["vision_ms"]) == 2
    tokens = [rows[str(changed)]["tokens_prefilled"] for changed in range(IMAGES + 1)]
    assert tokens[0] == 0
    assert len(set(np.diff(tokens[1:]))) == 1  # each further image costs its own tokens
    assert rows["first alone"]["images_encoded"] == 1
    assert rows["first alone"]["tokens_prefilled"] == tokens[-1]


def test_prefix_without_vision_encodes_as_many(small_export: SmallExport, run_benchmark: RunBenchmark) -> None:
    flags = ("--bundle", small_export.bundle, "--images", 2, "--frames", 1, "--threads", 1, "--encoded")
    found = run_benchmark("-m", "benchmarks.runtime.prefix", *flags).rows
    assert [row["images_encoded"] for row in found] == [0, 1, 2, 1]


def test_a_line_through_proportional_times_is_found() -> None:
    from benchmarks.runtime.prefix import proportionality

    tokens = [0, 256, 512, 1536]
    assert proportionality(tokens, [3 + 0.5 * one for one in tokens]) == pytest.approx(
        {"ms_per_token": 0.5, "rest_ms": 3.0, "explained": 1.0}
    )
    assert proportionality(tokens, [1.0, -1.0, -1.0, 1.0])["explained"] < 0.5  # no line
