"""Written graphs as files: inputs and outputs, versions, names that quantizers and bisect look for, shared weights, bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from graph_cases import SIZE, WrittenGraphs, assert_same, open_session

from drivekd.errors import UsageError
from drivekd.export.graphs import graphs as export_graphs
from drivekd.export.graphs.graphs import write_graphs
from drivekd.export.lowering.passes import name_weights

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("module_on_one_thread")]


def test_inputs_outputs_and_dims_are_the_specs(written: WrittenGraphs) -> None:
    for name, spec in written.specs.items():
        session = written.sessions[name]
        stated = [(tensor.name, list(tensor.dims)) for tensor in (*spec.inputs, *spec.outputs)]
        assert [(value.name, value.shape) for value in (*session.get_inputs(), *session.get_outputs())] == stated
    inputs = {name: [tensor.name for tensor in spec.inputs if "past" not in tensor.name] for name, spec in written.specs.items()}
    positions = ["position_ids"] if written.axes > 1 else []
    assert inputs["decoder.concat"] == ["inputs_embeds", "attention_mask", "position_ids"]
    assert inputs["decoder.gqa"] == ["inputs_embeds", "seqlens_k", "total_sequence_length", *positions]


def test_versions_that_a_car_reads(written: WrittenGraphs) -> None:
    for name, spec in written.specs.items():
        model = ir.load(written.folder / spec.file)
        assert model.ir_version == 10
        assert model.opset_imports == {"": 18} | ({"com.microsoft": 1} if name == "decoder.gqa" else {})


def matmuls(model: ir.Model) -> dict[str, ir.Node]:
    return {
        node.name or "": node
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].is_initializer()
    }


@pytest.mark.parametrize("dialect", ["concat", "gqa"])
def test_quantizers_find_every_matmul(written: WrittenGraphs, dialect: str) -> None:
    model = ir.load(written.folder / written.specs[f"decoder.{dialect}"].file)
    layers = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    expected = [f"layers.{number}.{layer}" for number in range(SIZE.language_layers) for layer in layers]
    assert list(matmuls(model)) == [*expected, "lm_head"]
    assert {node.op_type for node in model.graph} & {"Gemm", "Conv"} == set()
    for name, node in matmuls(model).items():
        weight = node.inputs[1]
        assert weight is not None
        assert weight.name == f"{name}.weight"
        assert weight.shape is not None
        assert weight.const_value is not None
    info = written.source.info
    assert list(model.graph.initializers["lm_head.weight"].shape or ()) == [info.hidden_size, info.vocab_size]


def test_vision_matmuls_and_layers_have_their_names(written: WrittenGraphs) -> None:
    model = ir.load(written.folder / "vision.onnx")
    prefixes = {name.rpartition(".")[0] for name in matmuls(model)}
    assert {f"vision.layers.{number}.mlp" for number in range(SIZE.vision_layers)} <= prefixes
    assert all(name.startswith(("vision.layers.", "projector.", "vision.patch_embed")) for name in matmuls(model))
    assert "Gemm" not in {node.op_type for node in model.graph}
    values = {value.name for node in model.graph for value in node.outputs}
    assert {f"vision.layers.{number}.output" for number in range(SIZE.vision_layers)} <= values


def test_dialects_share_their_weights(written: WrittenGraphs) -> None:
    files = {name: spec.data_file for name, spec in written.specs.items()}
    assert files == {"vision": None, "decoder.gqa": "decoder.data", "decoder.concat": "decoder.data"}
    used = sum(tensor.nbytes for tensor in _externals(written, "concat"))
    assert {tensor.offset for tensor in _externals(written, "gqa")} == {tensor.offset for tensor in _externals(written, "concat")}
    assert (written.folder / "decoder.data").stat().st_size < used + 4096 * len(_externals(written, "concat"))


def _externals(written: WrittenGraphs, dialect: str) -> list[ir.ExternalTensor]:
    model = ir.load(written.folder / written.specs[f"decoder.{dialect}"].file)
    return [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]


def test_bytes_are_the_same_in_any_folder_and_tell_none(written: WrittenGraphs, tmp_path: Path) -> None:
    """And the model is as it was: exporting swaps norms and attention for a while."""
    model: Any = written.source.model
    hooks = [len(module._forward_hooks) for module in model.modules()]  # transformers has some of its own
    again = tmp_path / "elsewhere"
    again.mkdir()
    write_graphs(written.source, again)
    for path in sorted(again.iterdir()):
        assert path.read_bytes() == (written.folder / path.name).read_bytes(), path.name
        for trace in (str(written.folder), "site-packages", "drivekd/export", "stack_trace"):
            assert trace.encode() not in path.read_bytes()
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_an_unknown_dialect_is_refused(written: WrittenGraphs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dialect 'std24' is unknown; this version has: gqa, concat"):
        write_graphs(written.source, tmp_path, ["concat", "std24"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def finished(written: WrittenGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """write_graphs takes these graphs, as if torch had just made them, for the dialect concat."""
    loaded = {name: ir.load(written.folder / spec.file) for name, spec in written.specs.items()}
    models = {name: ir.external_data.load_to_model(model) for name, model in loaded.items()}
    monkeypatch.setattr(export_graphs, "vision_graph", lambda *_: models["vision"])
    monkeypatch.setattr(export_graphs, "decoder_graphs", lambda *_: {"concat": models["decoder.concat"]})


def assert_concat_answers(written: WrittenGraphs, folder: Path) -> None:
    moved = dataclasses.replace(written, sessions={"decoder.concat": open_session(folder / "decoder.concat.onnx")})
    embeds, positions = written.prompt()
    assert_same(moved.concat(embeds, positions, written.empty()), written.torch_answer(embeds, positions))


@pytest.mark.usefixtures("finished")
def test_large_weights_lie_beside_the_graph(written: WrittenGraphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_graphs, "INLINE_LIMIT_BYTES", 1000)
    specs = write_graphs(written.source, tmp_path, ["concat"])
    assert {name: spec.data_file for name, spec in specs.items()} == {"vision": "vision.data", "decoder.concat": "decoder.data"}
    files = ["decoder.concat.onnx", "decoder.data", "vision.data", "vision.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert_concat_answers(written, tmp_path)


@pytest.mark.usefixtures("finished")
def test_small_weights_of_one_dialect_lie_in_the_graph(written: WrittenGraphs, tmp_path: Path) -> None:
    specs = write_graphs(written.source, tmp_path, ["concat"])
    assert {name: spec.data_file for name, spec in specs.items()} == {"vision": None, "decoder.concat": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.concat.onnx", "vision.onnx"]
    assert_concat_answers(written, tmp_path)


def test_weight_names_need_no_second_pass(written: WrittenGraphs) -> None:
    for spec in written.specs.values():
        assert not name_weights(ir.load(written.folder / spec.file))[1]
