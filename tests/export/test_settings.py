"""The command line's words for an export: what they mean, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivekd.errors import UsageError
from drivekd.export.quantize.convert import GraphPlan
from drivekd.export.settings import VISION_INT8, plan_from_options
from drivekd.quantization.form import WeightForm

CALIBRATION = "calibration=train.json"


def test_fp32_is_the_default_in_both_dialects() -> None:
    plan = plan_from_options()
    assert plan.is_exact
    assert plan.label == "fp32"
    assert plan.dialects == ("gqa", "concat")
    assert not plan.rounds_weights


def test_int4_leaves_the_vision_tower_in_int8() -> None:
    plan = plan_from_options("int4", [CALIBRATION, "block=64", "exclude=[lm_head]"])
    assert (plan.vision.precision, plan.decoder.precision) == ("int8", "int4")
    assert plan.label == "vision int8, decoder int4"
    assert (plan.decoder.block, plan.decoder.exclude) == (64, ("lm_head",))
    assert plan.settings.calibration == Path("train.json")
    assert plan.embedding == "int8"


def test_inputs_are_rounded_in_the_vision_graph_alone_and_with_calibration() -> None:
    assert not plan_from_options("int8").vision.int8_inputs
    plan = plan_from_options("int8", [CALIBRATION])
    assert (plan.vision.int8_inputs, plan.decoder.int8_inputs) == (True, False)
    assert not plan_from_options("int8", [CALIBRATION, "int8_inputs=false"]).vision.int8_inputs
    assert plan_from_options("int8", [CALIBRATION, "int8_inputs=true"]).decoder.int8_inputs


def test_one_pattern_needs_no_brackets() -> None:
    assert plan_from_options("int4", ["int8=lm_head", "exclude=layers.0.*"]).settings.int8 == ["lm_head"]


def test_each_layer_has_its_form() -> None:
    plan = plan_from_options("int4", ["int8=[layers.0.*]", "exclude=[lm_head]"])
    assert plan.form_of("layers.1.self_attn.q_proj", 896) == WeightForm(4, 32)
    assert plan.form_of("layers.0.mlp.gate_proj", 896) == WeightForm(8, 32)
    assert plan.form_of("vision.layers.0.attention.q_proj", 1024) == WeightForm(8, 32)
    assert plan.form_of("lm_head", 896) is None
    assert plan.form_of("layers.1.self_attn.q_proj", 16) is None, "narrower than a block"


def test_each_graph_may_have_its_own_precision() -> None:
    plan = plan_from_options("int4", ["vision=fp16"])
    assert (plan.vision.precision, plan.decoder.precision) == ("fp16", "int4")
    assert plan.embedding == "int8"
    assert plan_from_options("int4", ["embedding=fp16"]).embedding == "fp16"
    assert plan_from_options("fp16", ["decoder=fp32"]).decoder.precision == "fp32"


def test_defaults_are_those_of_a_graphs_plan() -> None:
    """One place: a default changed there is what an export does."""
    plan = plan_from_options("int4", ["vision=int4"])
    assert plan.decoder == GraphPlan("int4")
    assert plan.vision == GraphPlan("int4", int8=VISION_INT8)


def test_the_preferred_dialect_stays_first() -> None:
    assert plan_from_options("fp32", ["dialects=[concat, gqa]"]).dialects == ("gqa", "concat")
    assert plan_from_options("fp32", ["dialects=[concat]"]).dialects == ("concat",)


@pytest.mark.parametrize(
    ("precision", "overrides", "message"),
    [
        ("fp8", [], "--precision 'fp8' is unknown; this version exports fp32, fp16, int8, int4"),
        ("int8", ["int8_inputs=true"], r"give --set calibration=RECORDS\.json"),
        ("int4", ["int8_inputs=true", "vision=fp16"], "int8_inputs are of int8 graphs"),
        ("int8", ["int8=[lm_head]"], "int8 is about MatMuls of 8 bits in a decoder of int4; this one is int8"),
        ("fp16", ["bits=5", CALIBRATION], "bits is about MatMuls of 8 bits in a decoder of int4; this one is fp16"),
        ("int4", ["bits=5"], r"bits: .*calibration=RECORDS\.json"),
        ("int4", ["bits=5", "budget_mb=100", CALIBRATION], "bits and budget_mb both decide"),
        ("int4", ["bits=0", CALIBRATION], "bits = 0"),
        ("int4", ["bits=4.3", CALIBRATION], r"bits = 4\.3: int4 with a scale for each block of 32 has 4\.5 bits a weight"),
        ("int4", ["bits=.inf", CALIBRATION], "bits = inf"),
        ("int4", ["budget_mb=.inf", CALIBRATION], "budget_mb = inf"),
        ("fp16", ["rounded_checkpoint=x"], "rounded_checkpoint holds weights of int8 or int4"),
        ("int4", ["sensitivity=true"], r"calibration=RECORDS\.json"),
        ("int4", [CALIBRATION, "block=48"], "block = 48: .*32, 64 or 128"),
        ("fp32", ["exclude=[lm_head]"], "nothing is quantized in fp32"),
        ("fp32", ["dialects=[]"], "dialects"),
        ("fp32", ["dialects=[std24]"], "dialects.* = 'std24'"),
        ("fp32", ["blocks=32"], "unknown key blocks; known here: vision, decoder, embedding, block"),
        ("fp32", ["block"], "expected key=value, for example --set calibration="),
        ("int8", ["calibration_samples=0", CALIBRATION], "calibration_samples = 0"),
    ],
)
def test_what_is_refused(precision: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_from_options(precision, overrides)
