"""One decoder layer's attention and MLP through packing and both dialects, against attention written out head by head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from drivekd.export.lowering.concat import LOWER_TO_CONCAT
from drivekd.export.lowering.gqa import LOWER_TO_GQA
from drivekd.export.lowering.packing import pack_projections
from drivekd.export.lowering.passes import Pass, remove_unused, run_passes

Floats = NDArray[np.float32]
B, H, K, PAST, D, F = 2, 4, 2, 5, 16, 12  # rows, heads, key heads, cached columns, hidden size and MLP width
POSITIONS = 64
RNG = np.random.default_rng(0)
POSITION = np.asarray([[PAST], [PAST]], np.int64)


def normal(*shape: int) -> Floats:
    return RNG.standard_normal(shape).astype(np.float32)


class Layer:
    """Weights of one layer with heads `dim` wide, and its graph with nodes of domain "drivekd" as an export leaves them."""

    def __init__(self, dim: int, *, bias: bool = True) -> None:
        self.dim = dim
        self.weights = {f"self_attn.{name}.weight": normal(D, heads * dim) for name, heads in self._heads().items()}
        if bias:
            self.weights |= {f"self_attn.{name}.bias": normal(heads * dim) for name, heads in self._heads().items()}
        self.weights |= {f"mlp.{name}_proj.weight": normal(D, F) for name in ("gate", "up")}
        angles = np.arange(POSITIONS)[:, None] * 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.past = normal(B, K, PAST, dim), normal(B, K, PAST, dim)

    @staticmethod
    def _heads() -> dict[str, int]:
        return {"q_proj": H, "k_proj": K, "v_proj": K}

    def graph(self, *, tables: bool = True) -> ir.Model:
        """tables: cos and sin are gathered from tables, as with one rotary axis; else they come from computed angles."""
        tape = ir.tape.Tape()
        x = ir.val("inputs_embeds", dtype=ir.DataType.FLOAT, shape=["batch", "seq", D])
        mask = ir.val("attention_mask", dtype=ir.DataType.INT64, shape=["batch", "total"])
        positions = ir.val("position_ids", dtype=ir.DataType.INT64, shape=["batch", "seq"])
        past = [
            ir.val(f"past_key_values.0.{part}", dtype=ir.DataType.FLOAT, shape=["batch", K, "past", self.dim])
            for part in ("key", "value")
        ]
        weights = {name: tape.initializer(ir.tensor(array, name=f"layers.0.{name}")) for name, array in self.weights.items()}
        turn = [tape.op("Gather", [self._table(tape, name), positions]) for name in ("cos", "sin")]
        if not tables:
            turn = [tape.op("Neg", [tape.op("Neg", [value])]) for value in turn]
        inputs = [*self._projections(tape, x, weights), *past, *turn, self._bias(tape, mask)]
        sizes = {"layer": 0, "num_heads": H, "kv_num_heads": K, "scale": self.dim**-0.5}
        attended, *present = tape.op_multi_out("CachedAttention", inputs, sizes, num_outputs=3, domain="drivekd")
        gate, up = (tape.op("MatMul", [x, weights[f"mlp.{name}_proj.weight"]]) for name in ("gate", "up"))
        outputs = [attended, tape.op("Mul", [tape.op("Sigmoid", [gate]), up]), *present]
        for name, value in zip(("attended", "mlp", "present.0.key", "present.0.value"), outputs, strict=True):
            value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [x, mask, positions, *past],
            outputs,
            nodes=tape.nodes,
            initializers=tape.initializers,
            opset_imports={"": 18, "drivekd": 1},
            name="g",
        )
        return ir.Model(graph, ir_version=10)

    def _table(self, tape: ir.tape.Tape, name: str) -> ir.Value:
        return tape.initializer(ir.tensor(getattr(self, name), name=f"rotary.{name}"))

    def _projections(self, tape: ir.tape.Tape, x: ir.Value, weights: dict[str, ir.Value]) -> list[ir.Value]:
        products = []
        for name in self._heads():
            product = tape.op("MatMul", [x, weights[f"self_attn.{name}.weight"]])
            bias = weights.get(f"self_attn.{name}.bias")
            products.append(product if bias is None else tape.op("Add", [product, bias]))
        return products

    @staticmethod
    def _bias(tape: ir.tape.Tape, mask: ir.Value) -> ir.Value:
        """[B, 1, 1, S]: one new column sees all that are real."""
        seen = tape.op("Cast", [mask], {"to": ir.DataType.BOOL.value})
        values = [np.float32(0), np.finfo(np.float32).min]
        zero, hidden = (tape.initializer(ir.tensor(np.asarray(v), name=f"bias.{i}")) for i, v in enumerate(values))
        axes = tape.initializer(ir.tensor(np.asarray([1, 2]), name="axes"))
        return tape.op("Unsqueeze", [tape.op("Where", [seen, zero, hidden]), axes])

    def expected(self, x: Floats, visible: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
        """Attention's output [B, 1, H d] and the new key [B, K, d]; visible: each row's columns that count."""
        query, key, value = (self._project(x[:, 0], name, heads) for name, heads in self._heads().items())  # [B, heads, d]
        query, key = self._rotated(query), self._rotated(key)
        output = np.zeros((B, 1, H, self.dim), np.float32)
        for row in range(B):
            for head in range(H):
                shared = head // (H // K)
                keys = np.concatenate([self.past[0][row, shared], key[row, shared][None]])[visible[row]]
                values = np.concatenate([self.past[1][row, shared], value[row, shared][None]])[visible[row]]
                scores = np.exp(keys @ query[row, head] * self.dim**-0.5)
                output[row, 0, head] = scores / scores.sum() @ values
        return output.reshape(B, 1, H * self.dim), key

    def _project(self, x: Floats, name: str, heads: int) -> Floats:
        product = x @ self.weights[f"self_attn.{name}.weight"] + self.weights.get(f"self_attn.{name}.bias", np.float32(0))
        return np.asarray(product.reshape(B, heads, self.dim))

    def _rotated(self, heads: Floats) -> Floats:
        cos, sin = self.cos[PAST], self.sin[PAST]
        first, second = np.split(heads, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def run(model: ir.Model, feeds: dict[str, NDArray[np.generic]]) -> list[Floats]:
    model, _ = remove_unused(model)
    names = {value.name for value in model.graph.inputs}
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    return [np.asarray(out) for out in session.run(None, {name: feed for name, feed in feeds.items() if name in names})]


def feeds_of(layer: Layer, x: Floats, mask: NDArray[np.int64] | None = None) -> dict[str, NDArray[np.generic]]:
    return {
        "inputs_embeds": x,
        "attention_mask": np.ones((B, PAST + 1), np.int64) if mask is None else mask,
        "position_ids": POSITION,
        "past_key_values.0.key": layer.past[0],
        "past_key_values.0.value": layer.past[1],
        "seqlens_k": np.full(B, PAST, np.int32),
        "total_sequence_length": np.asarray([PAST + 1], np.int32),
    }


ALL = [list(range(PAST + 1))] * B
DIALECTS: dict[str, Sequence[Pass]] = {"concat": LOWER_TO_CONCAT, "gqa": LOWER_TO_GQA}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("dim", [16, 8])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tables", [True, False])
def test_a_layer_is_the_same_in_every_dialect(dialect: str, dim: int, bias: bool, tables: bool) -> None:
    layer, x = Layer(dim, bias=bias), normal(B, 1, D)
    model = run_passes(layer.graph(tables=tables), [pack_projections, *DIALECTS[dialect]], "a layer")
    assert "drivekd" not in {node.domain for node in model.graph}
    attended, mlp, key, value = run(model, feeds_of(layer, x))
    expected, new_key = layer.expected(x, ALL)
    np.testing.assert_allclose(attended, expected, atol=2e-5)  # fp32 rounding of values up to 10; measured 4e-6
    np.testing.assert_allclose(key[:, :, PAST], new_key, atol=2e-5)
    np.testing.assert_array_equal(key[:, :, :PAST], layer.past[0])
    np.testing.assert_array_equal(value[:, :, :PAST], layer.past[1])
    gate, up = (x @ layer.weights[f"mlp.{name}_proj.weight"] for name in ("gate", "up"))
    np.testing.assert_allclose(mlp, up / (1 + np.exp(-gate)), atol=2e-5)


def test_padding_is_not_seen_in_concat() -> None:
    layer, x = Layer(16), normal(B, 1, D)
    mask = np.ones((B, PAST + 1), np.int64)
    mask[1, :3] = 0
    model = run_passes(layer.graph(), [pack_projections, *LOWER_TO_CONCAT], "a layer")
    attended = run(model, feeds_of(layer, x, mask))[0]
    np.testing.assert_allclose(attended, layer.expected(x, [ALL[0], [3, 4, 5]])[0], atol=2e-5)


def test_packing_joins_weights_side_by_side() -> None:
    layer = Layer(16)
    model, changed = pack_projections(layer.graph())
    model, _ = remove_unused(model)
    assert changed
    found = {node.name for node in model.graph if node.op_type == "MatMul"}
    assert found == {"layers.0.self_attn.qkv_proj", "layers.0.mlp.gate_up_proj"}
    packed = {name: value.const_value for name, value in model.graph.initializers.items()}
    parts = [layer.weights[f"self_attn.{name}_proj.weight"] for name in "qkv"]
    tensor = packed["layers.0.self_attn.qkv_proj.weight"]
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.concatenate(parts, axis=1))
    assert "layers.0.self_attn.q_proj.weight" not in packed
    assert not pack_projections(model)[1], "packed once"


def test_gqa_takes_lengths_in_place_of_a_mask() -> None:
    model = run_passes(Layer(16).graph(), [pack_projections, *LOWER_TO_GQA], "a layer")
    names = [value.name for value in model.graph.inputs]
    assert names[:3] == ["inputs_embeds", "seqlens_k", "total_sequence_length"]
    assert not {"attention_mask", "position_ids"} & set(names)
    (node,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert node.attributes["do_rotary"].as_int() == 1
    outside = run_passes(Layer(16).graph(tables=False), [pack_projections, *LOWER_TO_GQA], "a layer")
    assert "position_ids" in [value.name for value in outside.graph.inputs]
    (node,) = (node for node in outside.graph if node.op_type == "GroupQueryAttention")
    assert node.attributes["do_rotary"].as_int() == 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_graph_without_attention_is_left_alone(dialect: str) -> None:
    tape, x = ir.tape.Tape(), ir.val("x", dtype=ir.DataType.FLOAT, shape=[1])
    graph = ir.Graph([x], [tape.op("Neg", [x])], nodes=tape.nodes, opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=10)
    assert not any(edit(model)[1] for edit in DIALECTS[dialect])
