"""fp16: what stays float32, and that it has to."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantized_graphs as made

from drivekd.export.quantize.convert import GraphPlan, apply_plan
from drivekd.export.quantize.half import to_half, value_types

WIDTH = 32


def normal(*shape: int, seed: int = 0) -> made.Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def named(op_type: str, inputs: list[ir.Value], name: str, **attributes: object) -> ir.Node:
    node = ir.node(op_type, inputs, attributes, name=name)  # type: ignore[arg-type]
    node.outputs[0].name = f"{name}.value"
    return node


def scalar(number: float) -> ir.Value:
    return made.weight(f"float32.{number}", np.asarray(number, np.float32))


def norm_graph() -> ir.Model:
    """x / sqrt(mean(x²) + epsilon) * weight, into a MatMul, as export/lowering/norms.py writes it."""
    x = made.value("x", "rows", WIDTH)
    square = named("Pow", [x, scalar(2)], "squares")
    mean = named("ReduceMean", [square.outputs[0], made.weight("axes", np.asarray([-1], np.int64))], "variance", keepdims=1)
    small = named("Add", [mean.outputs[0], scalar(1e-6)], "add")
    root = named("Sqrt", [small.outputs[0]], "sqrt")
    quotient = named("Div", [x, root.outputs[0]], "div")
    scaled = named("Mul", [quotient.outputs[0], made.weight("norm.weight", normal(WIDTH))], "mul")
    product = made.matmul("layers.0.mlp.up_proj", scaled.outputs[0], normal(WIDTH, 8))
    return made.graph([x], [product.outputs[0]], [square, mean, small, root, quotient, scaled, product])


def attention_graph() -> ir.Model:
    """softmax(x W + where(visible, 0, smallest float32)), into a MatMul."""
    x, visible = made.value("x", "rows", WIDTH), made.value("visible", "rows", 8)
    zero = scalar(0)
    equal = named("Greater", [visible, zero], "greater")
    bias = named("Where", [equal.outputs[0], zero, scalar(float(np.finfo(np.float32).min))], "where")
    scores = made.matmul("scores", x, normal(WIDTH, 8))
    masked = named("Add", [scores.outputs[0], bias.outputs[0]], "masked")
    softmax = named("Softmax", [masked.outputs[0]], "softmax", axis=-1)
    product = made.matmul("mixed", softmax.outputs[0], normal(8, 4))
    return made.graph([x, visible], [product.outputs[0]], [equal, bias, scores, masked, softmax, product])


def node_types(model: ir.Model) -> dict[str, set[str]]:
    """Float types that each node's values have, as onnx's own strict inference sees them."""
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True, check_type=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)}
    types |= {value.name: value.type.tensor_type.elem_type for value in inferred.graph.input}
    types |= {value.name: value.data_type for value in inferred.graph.initializer}
    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}
    return {
        node.name: {names[types[name]] for name in (*node.input, *node.output) if types[name] in names}
        for node in inferred.graph.node
        if node.op_type != "Cast"
    }


def test_the_variance_is_float32_and_the_rest_float16() -> None:
    model = norm_graph()
    apply_plan(model, GraphPlan("fp16"))
    types = node_types(model)
    assert all(types[name] == {"fp32"} for name in ("squares", "variance", "add", "sqrt", "div"))
    assert all(types[name] == {"fp16"} for name in ("mul", "layers.0.mlp.up_proj"))


def test_softmax_and_its_mask_are_float32_and_the_rest_float16() -> None:
    model = attention_graph()
    apply_plan(model, GraphPlan("fp16"))
    types = node_types(model)
    assert all(types[name] == {"fp32"} for name in ("where", "masked", "softmax"))
    assert all(types[name] == {"fp16"} for name in ("scores", "mixed"))


def test_without_islands_large_values_and_full_masks_break(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"x": 300 * normal(3, WIDTH, seed=1)}  # squares beyond 65,504
    hidden = {"x": normal(3, WIDTH, seed=1), "visible": np.zeros((3, 8), np.float32)}
    for make, feeds in ((norm_graph, large), (attention_graph, hidden)):
        (expected,) = made.run(make(), feeds)
        model = make()
        to_half(model)
        # float16 has 11 bits; some 10 roundings
        np.testing.assert_allclose(made.run_literally(model, feeds)[0], expected, atol=5e-3 * np.abs(expected).max())
    monkeypatch.setattr("drivekd.export.quantize.half.float32_nodes", lambda *_: set())
    for make, feeds in ((norm_graph, large), (attention_graph, hidden)):
        model = make()
        to_half(model)
        (found,), (expected,) = made.run_literally(model, feeds), made.run(make(), feeds)
        assert not np.allclose(found, expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_weight_beyond_float16_stays_float32(precision: str, caplog: pytest.LogCaptureFixture) -> None:
    weight, x = normal(WIDTH, 8), normal(2, WIDTH, seed=1)
    weight[4, 4] = 1e6
    model = made.product(weight)
    plan = GraphPlan(precision, activations="fp16")
    assert apply_plan(model, plan, made.ranges(x, ("layers.0.mlp.up_proj",))) == ("layers.0.mlp.up_proj",)
    assert "layers.0.mlp.up_proj stays float32: it has weights beyond 65504" in caplog.text
    np.testing.assert_allclose(made.run(model, {"x": x})[0], x @ weight, rtol=1e-5, atol=1e-2)  # float32 sums


def test_kv_is_float16_and_other_boundaries_stay_float32() -> None:
    past, x = made.value("past_key_values.0.key", "rows", WIDTH), made.value("x", "rows", WIDTH)
    present = named("Concat", [past, x], "concat", axis=0)
    present.outputs[0].name = "present.0.key"
    logits = made.matmul("lm_head", present.outputs[0], normal(WIDTH, 8))
    model = made.graph([x, past], [logits.outputs[0], present.outputs[0]], [present, logits])
    apply_plan(model, GraphPlan("fp16"))
    assert [value.dtype for value in model.graph.inputs] == [ir.DataType.FLOAT, ir.DataType.FLOAT16]
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [
        ("lm_head.value", ir.DataType.FLOAT),
        ("present.0.key", ir.DataType.FLOAT16),
    ]
    found = made.run(model, {"x": normal(2, WIDTH), "past_key_values.0.key": normal(1, WIDTH).astype(np.float16)})
    assert [array.dtype for array in found] == [np.float32, np.float16]


def test_angles_stay_float32() -> None:
    positions, frequencies = made.value("positions", "rows", 1), made.weight("inv_freq", np.asarray([[1.0, 0.01]], np.float32))
    angle = named("MatMul", [positions, frequencies], "angle")
    cosine = named("Cos", [angle.outputs[0]], "cos")
    model = made.graph([positions], [cosine.outputs[0]], [angle, cosine])
    at = {"positions": np.asarray([[4097.0]], np.float32)}  # float16 knows 4096 and 4100
    (expected,) = made.run(model, at)
    to_half(model)
    np.testing.assert_array_equal(made.run(model, at)[0], expected)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_scales_take_the_type_of_the_activations(precision: str) -> None:
    weight, x = normal(64, 8), normal(3, 64, seed=1)
    model = made.product(weight)
    plan = GraphPlan(precision, activations="fp16", int8_inputs=precision == "int8")
    apply_plan(model, plan, {}, made.ranges(x, ("layers.0.mlp.up_proj",)))
    types = value_types(model.graph)
    assert all(
        types[node.inputs[1]] == ir.DataType.FLOAT16  # type: ignore[index]
        for node in model.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "MatMul")
    )
    error = np.linalg.norm(made.run(model, {"x": x})[0] - x @ weight) / np.linalg.norm(x @ weight)
    assert error < {"int8": 0.02, "int4": 0.15}[precision]  # 9 % of normal weights in int4
