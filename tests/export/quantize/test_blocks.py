"""Blocks in a graph: their bytes, and the products that onnxruntime makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import quantized_graphs as made
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from onnxruntime.quantization.quant_utils import QuantFormat

from drivekd.errors import ExportError, UsageError
from drivekd.export.quantize.blocks import pack_nibbles
from drivekd.export.quantize.convert import GraphPlan, apply_plan
from drivekd.quantization.form import Quantized, WeightForm, quantized
from drivekd.quantization.linears import check_patterns


def normal(rows: int, columns: int, seed: int = 0) -> made.Floats:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


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
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, quant_format=QuantFormat.QDQ)
    expected, expected_scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight)
    np.testing.assert_array_equal(pack_nibbles(values).reshape(expected.shape), expected)
    np.testing.assert_array_equal(scales, expected_scales)


def rounded_to_nearest(weight: made.Floats, bits: int, block: int) -> Quantized:
    return quantized(torch.from_numpy(weight.T.copy()), WeightForm(bits, block))


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("rows", [128, 140])
@pytest.mark.parametrize("columns", [64, 7])
def test_the_graph_multiplies_with_the_dequantized_weight(precision: str, block: int, rows: int, columns: int) -> None:
    weight, x = normal(rows, columns), normal(3, rows, 1)
    model = made.product(weight)
    assert apply_plan(model, GraphPlan(precision, block)) == ()  # type: ignore[arg-type]
    (found,) = made.run(model, {"x": x})
    expected = x @ rounded_to_nearest(weight, int(precision[3:]), block).dequantized().numpy().T
    # onnxruntime rounds activations to int8 per block: 1/254 of a block's largest (3 sigma), over sqrt(rows) sums of unit weights
    assert np.abs(found - expected).max() < 0.02 * np.sqrt(rows)
    if precision == "int4":
        assert np.abs(found - x @ weight).max() > np.abs(found - expected).max(), "int4 itself costs more"


def test_weights_that_are_given_are_taken_as_they_are() -> None:
    weight, x = normal(64, 8), np.eye(64, dtype=np.float32)
    given = rounded_to_nearest(normal(64, 8, 5), 8, 32)
    model = made.product(weight)
    apply_plan(model, GraphPlan("int4"), {"layers.0.mlp.up_proj": given})
    np.testing.assert_allclose(made.run_literally(model, {"x": x})[0], given.dequantized().numpy().T, atol=1e-6)  # one product


def test_some_matmuls_have_eight_bits() -> None:
    names = ("layers.0.mlp.up_proj", "lm_head")
    model = made.product(normal(64, 8), names)
    apply_plan(model, GraphPlan("int4", int8=("lm_head",)))
    types = [node.inputs[0].dtype for node in model.graph if node.op_type == "DequantizeLinear"]  # type: ignore[union-attr]
    assert types == [ir.DataType.INT4, ir.DataType.INT8]


def test_scales_are_stored_as_float16_and_read_as_float32() -> None:
    model = made.product(normal(64, 8))
    apply_plan(model, GraphPlan("int4"))
    scales = model.graph.initializers["layers.0.mlp.up_proj.weight_scales"]
    assert scales.dtype == ir.DataType.FLOAT16
    tiny = made.product(normal(64, 8) * np.float32(1e-6))
    apply_plan(tiny, GraphPlan("int4"))
    assert tiny.graph.initializers["layers.0.mlp.up_proj.weight_scales"].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_it_becomes_one_kernel(precision: str, tmp_path: Path) -> None:
    model = made.product(normal(64, 8))
    apply_plan(model, GraphPlan(precision))
    assert [node.op_type for node in model.graph] == ["Cast", "DequantizeLinear", "MatMul"]
    assert model.graph.opset_imports[""] == 21
    assert made.optimized(model, tmp_path) == ["MatMulNBits"]


def test_every_engine_gets_whole_blocks() -> None:
    model = made.product(normal(76, 8))
    apply_plan(model, GraphPlan("int4"))
    shapes = {node.op_type: node.inputs[0].shape for node in model.graph}
    assert list(shapes) == ["Cast", "DequantizeLinear", "Pad", "MatMul"]
    assert shapes["DequantizeLinear"] == [96, 8]


def test_a_weight_of_two_matmuls_is_quantized_once() -> None:
    x, array = made.value("x", "rows", 64), normal(64, 8)
    first = made.matmul("first", x, array)
    second = ir.node("MatMul", [x, first.inputs[1]], name="second")
    second.outputs[0].name = "second.value"
    model = made.graph([x], [first.outputs[0], second.outputs[0]], [first, second])
    apply_plan(model, GraphPlan("int4"))
    assert [node.op_type for node in model.graph] == ["Cast", "DequantizeLinear", "MatMul", "MatMul"]
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
        ({"precision": "int4", "int8_inputs": True}, "int8_inputs are of int8 graphs, this one is int4"),
        ({"precision": "int4", "activations": "int8"}, "activations is 'int8'"),
    ],
)
def test_unknown_words_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GraphPlan(**wrong)  # type: ignore[arg-type]


def test_an_exclusion_that_matches_nothing_is_refused() -> None:
    names = ["layers.0.mlp.up_proj", "lm_head"]
    check_patterns("exclude", ["layers.*", "lm_head"], names)
    with pytest.raises(
        UsageError, match=r"int8: 'lm_haed' matches no MatMul\. Did you mean lm_head\? They are called layers\.0\.mlp\.up_proj"
    ):
        check_patterns("int8", ["lm_head", "lm_haed"], names)
