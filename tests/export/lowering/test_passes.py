"""Each edit of a graph on the smallest graph that needs it: what changes, what must not, and the numbers before and after."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from drivekd.errors import ExportError
from drivekd.export.graphs.from_torch import CLEAN
from drivekd.export.lowering import passes
from drivekd.export.lowering.nodes import constant_name
from drivekd.export.lowering.norms import norms_to_ort, norms_to_standard

DRIVEKD, ORT = "drivekd", "com.microsoft"
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 4)).astype(np.float32)
ROWS = RNG.standard_normal((2, 3, 4)).astype(np.float32)


def graph_of(tape: ir.tape.Tape, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
    domains = {"": 18, DRIVEKD: 1, ORT: 1}
    graph = ir.Graph(
        inputs, outputs, nodes=tape.nodes, initializers=tape.initializers, opset_imports=domains, name="a path of the author"
    )
    return ir.Model(graph, ir_version=13)


def hidden(name: str = "x") -> ir.Value:
    return ir.val(name, dtype=ir.DataType.FLOAT, shape=[2, 3, 4])


def typed(value: ir.Value) -> ir.Value:
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 3, 4])
    return value


def weight(tape: ir.tape.Tape, array: NDArray[Any], name: str) -> ir.Value:
    return tape.initializer(ir.tensor(array, name=name))


def run(model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    model.graph.opset_imports.pop(DRIVEKD, None)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    return [np.asarray(output) for output in session.run(None, dict(feeds))]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def linear_graph() -> ir.Model:
    """x -> x Wᵀ, as torch writes a linear layer."""
    tape, x = ir.tape.Tape(), hidden()
    transposed = tape.op("Transpose", [weight(tape, WEIGHT, "layers.0.mlp.up_proj.weight")], {"perm": [1, 0]})
    y = typed(tape.op("MatMul", [x, transposed]))
    y.name = "y"
    return graph_of(tape, [x], [y])


def ten_nodes() -> ir.Model:
    """x through ten nodes, all of them needed."""
    tape, x = ir.tape.Tape(), hidden()
    value = x
    for op_type in ("Neg", "Sigmoid") * 5:
        value = typed(tape.op(op_type, [value]))
    return graph_of(tape, [x], [value])


def break_first_node(model: ir.Model) -> tuple[ir.Model, bool]:
    raise KeyError(model.graph[0].op_type)


def test_a_failing_pass_is_named_with_all_that_ran_before_it() -> None:
    model = passes.run_passes(ten_nodes(), [passes.set_ir_version, passes.remove_unused], "small.onnx")
    copies = [passes.copy_of(model) for _ in range(2)]
    passes.run_passes(copies[0], [passes.name_nodes], "another copy, of which the other one's error says nothing")
    with pytest.raises(ExportError) as caught:
        passes.run_passes(copies[1], [passes.fix_reshapes, break_first_node, passes.name_nodes], "small.onnx")
    message = re.sub(r"test_passes\.py:\d+", "FILE:LINE", str(caught.value))
    assert message == (
        "small.onnx: pass break_first_node failed: KeyError: 'Neg' (FILE:LINE). "
        "Before it ran: set_ir_version (changed it), remove_unused (changed it), fix_reshapes (changed nothing)"
    ), "graph_of declares domains that no node has: remove_unused takes them out"
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_first_pass_can_fail() -> None:
    with pytest.raises(ExportError, match=r"^small: pass break_first_node failed: .* Before it ran: none$"):
        passes.run_passes(ten_nodes(), [break_first_node], "small")


def test_a_history_is_in_no_file() -> None:
    model = passes.run_passes(ten_nodes(), [passes.remove_unused], "small")
    assert b"remove_unused" not in ir.serde.serialize_model(model).SerializeToString()


def test_passes_change_nothing_twice() -> None:
    """So the flag tells which pass did something."""
    edits = (*CLEAN, passes.name_nodes)
    model = passes.run_passes(ten_nodes(), edits, "small")
    assert [edit.__name__ for edit in edits if edit(model)[1]] == []


def test_metadata_and_doc_strings_go() -> None:
    model = linear_graph()
    model.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/me/file.py"
    model.graph[0].doc_string = "/home/me"
    model.graph[1].outputs[0].metadata_props["x"] = "/home/me"
    stripped, changed = passes.strip_metadata(model)
    assert changed
    assert b"/home/me" not in ir.serde.serialize_model(stripped).SerializeToString()
    assert not passes.strip_metadata(stripped)[1]


def test_ir_version_is_lowered_and_never_raised() -> None:
    model = linear_graph()
    assert passes.set_ir_version(model)[1]
    assert model.ir_version == 10
    model.ir_version = 8
    assert not passes.set_ir_version(model)[1]
    assert model.ir_version == 8


def test_a_transposed_weight_becomes_one() -> None:
    (before,) = run(linear_graph(), {"x": ROWS})
    model, changed = passes.fold_transposes(linear_graph())
    assert changed
    assert kinds(model) == ["MatMul"]
    folded = model.graph[0].inputs[1]
    assert folded is not None
    assert folded.is_initializer()
    assert folded.name == "layers.0.mlp.up_proj.weight"
    (after,) = run(model, {"x": ROWS})
    np.testing.assert_array_equal(after, before)
    np.testing.assert_allclose(after, ROWS @ WEIGHT.T, atol=1e-6)  # fp32 rounding of four products


def test_a_weight_that_is_used_twice_is_not_transposed() -> None:
    model = linear_graph()
    shared = model.graph.initializers["layers.0.mlp.up_proj.weight"]
    extra = ir.node("MatMul", [model.graph.inputs[0], shared])
    model.graph.append(extra)
    model.graph.outputs.append(typed(extra.outputs[0]))
    assert not passes.fold_transposes(model)[1]
    assert kinds(model) == ["Transpose", "MatMul", "MatMul"]


def squeezed_product_graph() -> ir.Model:
    """x [2, 3, 4] -> its last column as [2, 1, 4] -> x w, squeezed: [2, 4]."""
    tape, x = ir.tape.Tape(), hidden()
    last = tape.op(
        "Slice", [x, *(weight(tape, np.asarray([value]), name) for value, name in ((2, "from"), (3, "to"), (1, "axis")))]
    )
    product = tape.op("MatMul", [last, weight(tape, WEIGHT, "lm_head.weight")])
    y = tape.op("Squeeze", [product, weight(tape, np.asarray([1]), "axes")])
    y.name, y.type, y.shape = "logits", ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 4])
    return graph_of(tape, [x], [y])


def test_the_hidden_state_is_squeezed_and_not_the_logits() -> None:
    (before,) = run(squeezed_product_graph(), {"x": ROWS})
    model, changed = passes.squeeze_before_product(squeezed_product_graph())
    assert changed
    assert kinds(model) == ["Slice", "Squeeze", "MatMul"]
    assert [value.name for value in model.graph.outputs] == ["logits"]
    (after,) = run(model, {"x": ROWS})
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert not passes.squeeze_before_product(model)[1]


def test_a_mark_names_its_value() -> None:
    tape, x = ir.tape.Tape(), hidden()
    doubled = typed(tape.op("Add", [x, x]))
    marked = tape.op("Mark", [doubled], {"name": "layers.0.output"}, domain=DRIVEKD)
    y = typed(tape.op("Neg", [marked]))
    model, changed = passes.name_marked(graph_of(tape, [x], [y]))
    assert changed
    assert kinds(model) == ["Add", "Neg"]
    assert model.graph[0].outputs[0].name == "layers.0.output"
    np.testing.assert_array_equal(run(model, {"x": ROWS})[0], -2 * ROWS)


@pytest.mark.parametrize(
    ("torch_name", "name"),
    [
        ("model.vision_tower.encoder.layer.7.mlp.fc1.weight", "vision.layers.7.mlp.fc1.weight"),
        ("model.vision_tower.embeddings.cls_token", "vision.embeddings.cls_token"),
        ("model.multi_modal_projector.linear_1.bias", "projector.linear_1.bias"),
        ("blocks.31.attn.qkv.weight", "vision.layers.31.attn.qkv.weight"),
        ("patch_embed", "vision.patch_embed.weight"),
        ("cos", "vision.cos"),
        ("merger.mlp.0.weight", "projector.mlp.0.weight"),
        ("layers.3.self_attn.o_proj.weight", "layers.3.self_attn.o_proj.weight"),
        ("rotary.cos", "rotary.cos"),
    ],
)
def test_weights_have_the_names_of_the_design(torch_name: str, name: str) -> None:
    tape, x = ir.tape.Tape(), hidden()
    y = typed(tape.op("MatMul", [x, weight(tape, WEIGHT, torch_name)]))
    model, changed = passes.name_weights(graph_of(tape, [x], [y]))
    assert list(model.graph.initializers) == [name]
    assert changed == (name != torch_name)


def test_constants_are_computed_and_weights_left_alone() -> None:
    """Equal biases keep their two names: torch's optimiser would merge them, and quantizers and names would miss one."""
    tape, x = ir.tape.Tape(), hidden()
    zeros = np.zeros(4, np.float32)
    two = tape.op("Constant", [], {"value": ir.tensor(np.asarray(2, np.float32))})
    four = tape.op("Mul", [two, two])
    biased = tape.op("Add", [x, weight(tape, zeros, "layers.0.self_attn.q_proj.bias")])
    again = tape.op("Add", [biased, weight(tape, zeros, "layers.0.self_attn.k_proj.bias")])
    model = graph_of(tape, [x], [typed(tape.op("Mul", [again, four]))])
    model, changed = passes.fold_constants(model)
    model, _ = passes.remove_unused(model)
    assert changed
    assert kinds(model) == ["Add", "Add", "Mul"]
    assert {"layers.0.self_attn.q_proj.bias", "layers.0.self_attn.k_proj.bias"} <= set(model.graph.initializers)
    np.testing.assert_array_equal(run(model, {"x": ROWS})[0], 4 * ROWS)


def test_equal_constants_become_one_and_others_do_not() -> None:
    tape, x = ir.tape.Tape(), hidden()
    arrays = {"val_1": 0.1, "val_2": 0.1, "val_3": np.float32(0.1) + np.float32(1e-8)}  # the last prints alike with six digits
    total: ir.Value = x
    for name, value in arrays.items():
        total = tape.op("Add", [total, weight(tape, np.asarray(value, np.float32), name)])
    model, changed = passes.name_constants(graph_of(tape, [x], [typed(total)]))
    model, _ = passes.remove_unused(model)
    assert changed
    assert list(model.graph.initializers) == ["float32.0.1.scalar", "float32.0.10000001.scalar"]


def test_constant_names_tell_shape_and_type() -> None:
    arrays = [np.asarray(values, dtype) for dtype in (np.int64, np.int32, np.float32) for values in (1, [1], [[1]], [1, -1])]
    names = [constant_name(array) for array in arrays]
    assert len(set(names)) == len(names)
    assert names[1] == "int64.1"


def reshape_graph(*, known: int) -> ir.Model:
    """x [2, 3, 4] reshaped to (its first size, known, -1 or 4): shape arithmetic as torch writes it."""
    tape, x = ir.tape.Tape(), hidden()
    first = tape.op("Shape", [x], {"start": 0, "end": 1})
    sizes = [weight(tape, np.asarray([size], np.int64), f"val_{size}") for size in (known, 12 // abs(known))]
    return graph_of(tape, [x], [typed(tape.op("Reshape", [x, tape.op("Concat", [first, *sizes], {"axis": 0})]))])


def test_one_computed_size_becomes_minus_one() -> None:
    model, changed = passes.fix_reshapes(reshape_graph(known=6))
    model, _ = passes.remove_unused(model)
    assert changed
    assert kinds(model) == ["Reshape"]
    np.testing.assert_array_equal(run(model, {"x": ROWS})[0], ROWS.reshape(2, 6, 2))


def test_a_second_open_size_stays_computed() -> None:
    assert not passes.fix_reshapes(reshape_graph(known=-1))[1]


def test_nodes_and_values_speak() -> None:
    tape, x = ir.tape.Tape(), hidden()
    product = tape.op("MatMul", [x, weight(tape, WEIGHT, "layers.0.mlp.up_proj.weight")], name="node_MatMul_1")
    biased = tape.op("Add", [product, weight(tape, WEIGHT[0], "layers.0.mlp.up_proj.bias")], name="node_Add_2")
    activated = tape.op("Sigmoid", [biased], name="node_Sigmoid_3")
    kept = tape.op("Neg", [activated], name="layers.0.self_attn.softmax")
    kept.name = "layers.0.output"
    y = typed(tape.op("Sigmoid", [kept], name="node_Sigmoid_4"))
    y.name = "logits"
    model, _ = passes.name_nodes(graph_of(tape, [x], [y]))
    assert [node.name for node in model.graph] == [
        "layers.0.mlp.up_proj",
        "layers.0.mlp.up_proj.add",
        "layers.0.mlp.sigmoid",
        "layers.0.self_attn.softmax",
        "layers.0.mlp.sigmoid_2",
    ]
    values = [node.outputs[0].name for node in model.graph]
    assert values[:2] == ["layers.0.mlp.up_proj.value", "layers.0.mlp.up_proj.add.value"]
    assert values[3:] == ["layers.0.output", "logits"]


def norm_graph(*, adds: bool) -> ir.Model:
    """RMSNorm of x, or of x + z, whose sum is an output, too."""
    tape, x, z = ir.tape.Tape(), hidden(), hidden("z")
    total = tape.op("Add", [x, z]) if adds else x
    scale = weight(tape, WEIGHT[1], "layers.0.input_layernorm.weight")
    normed = typed(tape.op("RMSNorm", [total, scale], {"epsilon": 1e-3}, domain=DRIVEKD))
    return graph_of(tape, [x, z] if adds else [x], [normed, typed(total)] if adds else [normed])


def rms_norm(x: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * WEIGHT[1]


@pytest.mark.parametrize("lowering", [norms_to_standard, norms_to_ort])
@pytest.mark.parametrize("adds", [False, True])
def test_a_norm_is_the_same_in_every_form(lowering: passes.Pass, adds: bool) -> None:
    model, changed = lowering(norm_graph(adds=adds))
    assert changed
    other = RNG.standard_normal(ROWS.shape).astype(np.float32)
    outputs = run(model, {"x": ROWS, "z": other} if adds else {"x": ROWS})
    total = ROWS + other if adds else ROWS
    np.testing.assert_allclose(outputs[0], rms_norm(total), atol=2e-6)  # fp32 rounding
    if adds:
        np.testing.assert_allclose(outputs[1], total, atol=1e-6)


def test_the_addition_before_a_norm_is_fused_with_it() -> None:
    assert kinds(norms_to_ort(norm_graph(adds=True))[0]) == ["SkipSimplifiedLayerNormalization"]
    assert kinds(norms_to_ort(norm_graph(adds=False))[0]) == ["SimplifiedLayerNormalization"]
    assert "Add" in kinds(norms_to_standard(norm_graph(adds=True))[0])


def test_a_bias_before_a_norm_is_not_a_residual() -> None:
    tape, x = ir.tape.Tape(), hidden()
    biased = tape.op("Add", [x, weight(tape, WEIGHT[0], "projector.bias")])
    normed = typed(tape.op("RMSNorm", [biased, weight(tape, WEIGHT[1], "ln_q.weight")], {"epsilon": 1e-3}, domain=DRIVEKD))
    model, _ = norms_to_ort(graph_of(tape, [x], [normed]))
    assert kinds(model) == ["Add", "SimplifiedLayerNormalization"]
    np.testing.assert_allclose(run(model, {"x": ROWS})[0], rms_norm(ROWS + WEIGHT[0]), atol=2e-6)  # fp32 rounding
