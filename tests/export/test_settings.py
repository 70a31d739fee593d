"""The command line's words for an export: what they mean, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivekd.errors import UsageError
from drivekd.export.quantize.convert import GraphPlan
from drivekd.export.settings import plan_from_options

CALIBRATION = "calibration=train.json"


def test_fp32_is_the_default_in_both_dialects() -> None:
    plan = plan_from_options()
    assert plan.is_exact
    assert plan.label == "fp32"
    assert plan.dialects == ("gqa", "concat")
    assert not plan.needs_calibration


def test_int4_leaves_the_vision_tower_in_int8() -> None:
    plan = plan_from_options("int4", [CALIBRATION, "block=64", "exclude=[lm_head]"])
    assert (plan.vision.precision, plan.decoder.precision) == ("int8", "int4")
    assert plan.label == "vision int8, decoder int4"
    assert (plan.decoder.block, plan.decoder.exclude) == (64, ("lm_head",))
    assert plan.settings.calibration == Path("train.json")


def test_each_graph_may_have_its_own_precision() -> None:
    plan = plan_from_options("int4", ["vision=fp16"])
    assert (plan.vision.precision, plan.decoder.precision) == ("fp16", "int4")
    assert not plan.needs_calibration
    assert plan_from_options("fp16", ["decoder=fp32"]).decoder.precision == "fp32"


def test_defaults_are_those_of_a_graphs_plan() -> None:
    """One place: a default changed there is what an export does."""
    plan = plan_from_options("int4", ["vision=int4"])
    assert plan.vision == plan.decoder == GraphPlan("int4")


def test_the_preferred_dialect_stays_first() -> None:
    assert plan_from_options("fp32", ["dialects=[concat, gqa]"]).dialects == ("gqa", "concat")
    assert plan_from_options("fp32", ["dialects=[concat]"]).dialects == ("concat",)


@pytest.mark.parametrize(
    ("precision", "overrides", "message"),
    [
        ("fp8", [], "--precision 'fp8' is unknown; this version exports fp32, fp16, int8, int4"),
        ("int8", [], r"give --set calibration=RECORDS\.json"),
        ("int4", [], r"calibration=RECORDS\.json.*or --set vision=fp16"),
        ("int4", [CALIBRATION, "block=48"], "block = 48: .*32, 64 or 128"),
        ("fp32", ["exclude=[lm_head]"], "nothing is quantized in fp32"),
        ("fp32", ["dialects=[]"], "dialects"),
        ("fp32", ["dialects=[std24]"], "dialects.* = 'std24'"),
        ("fp32", ["blocks=32"], "unknown key blocks; known here: vision, decoder, block"),
        ("fp32", ["block"], "expected key=value"),
        ("int8", ["calibration_samples=0", CALIBRATION], "calibration_samples = 0"),
    ],
)
def test_what_is_refused(precision: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_from_options(precision, overrides)
