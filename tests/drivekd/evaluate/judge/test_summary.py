"""The judge's table says on how many questions a mean stands."""

from __future__ import annotations

from drivekd.evaluate.judge.summary import COLUMNS, JudgeRow


def test_n_is_what_the_mean_is_of() -> None:
    row = JudgeRow("all", "", "", "clean", n=27, scored=21, mean=15.0, interval=(10.0, 20.0), without_score=6, not_judged=0)
    cells = dict(zip(COLUMNS, row.cells(), strict=True))
    assert (cells["n"], cells["judge score"], cells["without score"]) == ("21", "15.0", "6")
