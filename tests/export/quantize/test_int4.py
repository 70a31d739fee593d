"""int4: bounds, bytes, and the two forms against the arithmetic that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import quantized_graphs as made
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from onnxruntime.quantization.quant_utils import QuantFormat

from drivekd.errors import ExportError, UsageError
from drivekd.export.quantize.convert import GraphPlan, apply_plan
from drivekd.export.quantize.int4 import SMALLEST_SCALE, block_scales, dequantized, pack_columns, pack_rows, quantize_blocks
from drivekd.export.quantize.matmuls import check_exclusions

FP32 = SMALLEST_SCALE["fp32"]
FORMS = ("qdq", "matmulnbits")
WEIGHTS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 70), st.integers(1, 5)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False) | st.sampled_from([0.0, -0.125, 0.125, 1.0, -1.0]),
)


def normal(rows: int, columns: int, seed: int = 0) -> made.Floats:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


@given(WEIGHTS, st.sampled_from([16, 32]))
@settings(max_examples=200, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_step(weight: made.Floats, block: int) -> None:
    found = quantize_blocks(weight, block)
    steps = np.repeat(found.scales, block, axis=0)[: len(weight)]
    assert (found.scales > 0).all()
    assert found.values.min() >= -8
    assert found.values.max() <= 7
    # 1e-5: three float32 roundings of numbers up to 8.5 steps
    assert (np.abs(dequantized(found, len(weight)).astype(np.float64) - weight) <= steps.astype(np.float64) * (0.5 + 1e-5)).all()


def test_a_smaller_scale_would_break_the_bound() -> None:
    blocks = np.stack([normal(32, 8), -normal(32, 8, 1)])
    scales = block_scales(blocks, 1, FP32)[:, None] * np.float32(0.99)
    restored = np.clip(np.rint(blocks / scales), -8, 7) * scales
    assert (np.abs(restored - blocks).max(axis=1) > scales[:, 0] / 2).all()


def test_scales_stay_normal_numbers_of_their_type() -> None:
    tiny = np.full((32, 1), 1e-7, np.float32)
    scales = quantize_blocks(tiny, 32, SMALLEST_SCALE["fp16"]).scales
    assert scales.astype(np.float16)[0, 0] >= np.finfo(np.float16).tiny


def whole_steps(block: int, rows: int, columns: int) -> made.Floats:
    """Weights that onnxruntime's quantizer represents exactly: -8 steps are in each block, and steps are powers of 2."""
    rng = np.random.default_rng(3)
    values = rng.integers(-8, 8, (rows, columns))
    values[::block] = -8
    scales = 2.0 ** rng.integers(-6, 0, (rows // block, columns))
    return (values * np.repeat(scales, block, axis=0)).astype(np.float32)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_bytes_are_packed_as_onnxruntime_packs_them(block: int) -> None:
    weight = whole_steps(block, 256, 6)
    scales = -weight.reshape(-1, block, 6).min(axis=1) / 8
    values = (weight / np.repeat(scales, block, axis=0)).astype(np.int8)
    for form, packed in ((QuantFormat.QDQ, pack_rows(values)), (QuantFormat.QOperator, pack_columns(values, block))):
        config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, quant_format=form)
        expected, expected_scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight)
        np.testing.assert_array_equal(packed.reshape(expected.shape), expected)
        expected_scales = expected_scales.reshape(6, -1).T if form == QuantFormat.QOperator else expected_scales
        np.testing.assert_array_equal(scales, expected_scales)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("rows", [128, 140])
@pytest.mark.parametrize("columns", [64, 7])
def test_both_forms_multiply_with_the_dequantized_weight(form: str, block: int, rows: int, columns: int) -> None:
    weight, x = normal(rows, columns), normal(3, rows, 1)
    model = made.product(weight)
    assert apply_plan(model, GraphPlan("int4", block, form=form)) == ()
    (found,) = made.run(model, {"x": x})
    expected = x @ dequantized(quantize_blocks(weight, block), rows)
    # onnxruntime rounds activations to int8 per block: 1/254 of a block's largest (3 sigma), over sqrt(rows) sums of unit weights
    assert np.abs(found - expected).max() < 0.02 * np.sqrt(rows)
    assert np.abs(found - x @ weight).max() > np.abs(found - expected).max(), "int4 itself costs more"


def test_both_forms_give_the_same_bits() -> None:
    weight, x = normal(96, 33), normal(4, 96, 1)
    outputs = []
    for form in FORMS:
        model = made.product(weight)
        apply_plan(model, GraphPlan("int4", form=form))
        outputs.append(made.run(model, {"x": x})[0])
    np.testing.assert_array_equal(*outputs)


def test_qdq_becomes_one_kernel(tmp_path: Path) -> None:
    model = made.product(normal(64, 8))
    apply_plan(model, GraphPlan("int4"))
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul"]
    assert model.graph.opset_imports[""] == 21
    assert made.optimized(model, tmp_path) == ["MatMulNBits"]


def test_qdq_gives_every_engine_whole_blocks() -> None:
    model = made.product(normal(76, 8))
    apply_plan(model, GraphPlan("int4"))
    shapes = {node.op_type: node.inputs[0].shape for node in model.graph}
    assert list(shapes) == ["DequantizeLinear", "Pad", "MatMul"]
    assert shapes["DequantizeLinear"] == [96, 8]


def test_a_weight_of_two_matmuls_is_quantized_once() -> None:
    x, array = made.value("x", "rows", 64), normal(64, 8)
    first = made.matmul("first", x, array)
    second = ir.node("MatMul", [x, first.inputs[1]], name="second")
    second.outputs[0].name = "second.value"
    model = made.graph([x], [first.outputs[0], second.outputs[0]], [first, second])
    apply_plan(model, GraphPlan("int4"))
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul", "MatMul"]
    np.testing.assert_array_equal(*made.run(model, {"x": normal(2, 64, 1)}))


def test_fewer_inputs_than_a_block_stay_float(caplog: pytest.LogCaptureFixture) -> None:
    weight, x = normal(48, 8), normal(2, 48, 1)
    model = made.product(weight)
    assert apply_plan(model, GraphPlan("int4", 64)) == ("layers.0.mlp.up_proj",)
    assert "layers.0.mlp.up_proj stays float: its 48 inputs are less than a block of 64" in caplog.text
    np.testing.assert_allclose(made.run(model, {"x": x})[0], x @ weight, rtol=1e-5, atol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_excluded_matmuls_keep_their_weights(precision: str) -> None:
    names = ("layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "lm_head")
    weight, x = normal(64, 8), normal(2, 64, 1)
    model = made.product(weight, names)
    assert apply_plan(model, GraphPlan(precision, exclude=("layers.0.*", "lm_head"))) == ("layers.0.mlp.up_proj", "lm_head")
    errors = [np.abs(found - x @ (weight + i)).max() for i, found in enumerate(made.run(model, {"x": x}))]
    assert max(errors[0], errors[2]) < 1e-4  # float32 sums of 64 values in another order
    assert errors[1] > 1e-3  # of float16, whose steps at 16 are 0.016, or int4


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_nan_weights_are_refused(precision: str) -> None:
    weight = normal(64, 8)
    weight[3, 2] = np.nan
    with pytest.raises(ExportError, match=r"layers\.0\.mlp\.up_proj: 1 of 512 weights are NaN or infinite"):
        apply_plan(made.product(weight), GraphPlan(precision))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int5"}, r"precision is 'int5'; expected one of fp32, fp16, int8, int4"),
        ({"precision": "int4", "block": 48}, r"block is 48; expected one of 32, 64, 128"),
        ({"precision": "int4", "form": "gguf"}, "form is 'gguf'"),
        ({"precision": "int4", "activations": "int8"}, "activations is 'int8'"),
    ],
)
def test_unknown_words_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GraphPlan(**wrong)  # type: ignore[arg-type]


def test_an_exclusion_that_matches_nothing_is_refused() -> None:
    names = ["layers.0.mlp.up_proj", "lm_head"]
    check_exclusions(["layers.*", "lm_head"], names)
    with pytest.raises(
        UsageError, match=r"exclude 'lm_haed' matches no MatMul; they are called layers\.0\.mlp\.up_proj, lm_head"
    ):
        check_exclusions(["lm_head", "lm_haed"], names)
