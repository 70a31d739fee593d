"""Digests in order, and still not to be believed: a manifest against its graphs, and graphs that point out of their bundle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_bundle import (
    DATA_BYTES,
    HEAD_WEIGHT,
    decoder_model,
    external_tensor,
    make_model,
    small_manifest,
    vision_model,
    write_manifest,
    write_small_bundle,
)

from drivekd.errors import BundleError
from drivekd.runtime import load_bundle, read_bundle
from drivekd.runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec
from drivekd.runtime.bundle.onnx_file import OpUse, read_onnx
from drivekd.runtime.engine.ort import OrtRunner


@pytest.fixture(autouse=True)
def no_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("an engine was given an unverified graph")

    if "engine" not in request.fixturenames:
        monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


@pytest.fixture
def engine() -> None:
    """For tests that let onnxruntime load a graph."""


def edited(folder: Path, edit: Callable[[Any], Any]) -> Path:
    """The small bundle with an edited manifest and right digests."""
    write_small_bundle(folder)
    value = json.loads((folder / "manifest.json").read_bytes())
    edit(value)
    write_manifest(folder, json.dumps(value).encode())
    return folder


def kv_dims(value: Any, axis: int, size: int) -> None:
    for tensor in (*value["graphs"]["decoder.concat"]["inputs"], *value["graphs"]["decoder.concat"]["outputs"]):
        if "0." in tensor["name"]:
            tensor["dims"][axis] = size


LIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a graph file that is not there": (lambda m: m["graphs"]["vision"].update(file="x.onnx"), "names the file 'x.onnx'"),
    "a data file that is not there": (lambda m: m["graphs"]["vision"].update(data_file="../x"), r"names the file '\.\./x'"),
    "no data file": (lambda m: m["graphs"]["decoder.concat"].update(data_file=None), "lie in 'decoder.data', expected None"),
    "another data file": (lambda m: m["graphs"]["decoder.concat"].update(data_file="golden.npz"), "expected 'golden.npz'"),
    "no vision": (lambda m: m["graphs"].pop("vision"), "has the graphs"),
    "one graph more": (lambda m: m["graphs"].update(x=m["graphs"]["vision"]), "has the graphs"),
    "one dialect more": (lambda m: m.update(dialects=["gqa", "concat"]), "has the graphs"),
    "an unknown dialect": (lambda m: m.update(dialects=["paged"]), r"dialects are \['paged'\]"),
    "no dialect": (lambda m: m.update(dialects=[]), "dialects are"),
    "graphs exchanged": (lambda m: m["graphs"]["vision"].update(file="decoder.concat.onnx"), "has the inputs"),
    "a graph that is none": (lambda m: m["graphs"]["vision"].update(file="tokenizer.json"), "is no ONNX file"),
    "an input more": (lambda m: m["graphs"]["vision"]["inputs"].append(m["graphs"]["vision"]["outputs"][0]), "has the inputs"),
    "an input renamed": (lambda m: m["graphs"]["decoder.concat"]["inputs"][1].update(name="x"), "has the inputs"),
    "another type": (lambda m: m["graphs"]["vision"]["inputs"][0].update(dtype="float16"), "is float32 .*says float16"),
    "an unknown type": (lambda m: m["graphs"]["vision"]["inputs"][0].update(dtype="complex64"), "is complex64; this drivekd"),
    "fixed where free": (lambda m: m["graphs"]["vision"]["inputs"][0]["dims"].__setitem__(0, 1), r"says float32 \[1, 3, 2, 2\]"),
    "free where fixed": (lambda m: m["graphs"]["vision"]["inputs"][0]["dims"].__setitem__(1, "c"), "want 3 at -3"),
    "no dims": (
        lambda m: m["graphs"]["decoder.concat"]["inputs"][1].update(dims=[]),
        r"attention_mask is int64 \[batch, total\]",
    ),
    "other K/V heads": (lambda m: (kv_dims(m, 1, 7), m["model"].update(num_kv_heads=7, num_heads=7)), "says float32"),
    "layers": (lambda m: m["model"].update(num_layers=10**6), "has 2 K/V inputs"),
    "hidden size": (lambda m: m["model"].update(hidden_size=8), "want 8 at -1"),
    "head dim": (lambda m: m["model"].update(head_dim=3), "want 3 at 3"),
    "vocabulary": (lambda m: m["model"].update(vocab_size=9), "want 9 at -1"),
    "vision tokens": (lambda m: m["chat"].update(tokens_per_image=256), "want 256 at -2"),
    "image size": (lambda m: m["images"].update(size_px=448), "want 448"),
    "negative layers": (lambda m: m["model"].update(num_layers=-1), "num_layers = -1"),
    "no heads": (lambda m: m["model"].update(num_kv_heads=0), "num_kv_heads = 0"),
    "no image": (lambda m: m["images"].update(size_px=0), r"images\.size_px = 0"),
    "endless positions": (lambda m: m["model"].update(max_positions=10**15), "max_positions = 1000000000000000"),
    "heads that do not divide": (lambda m: m["model"].update(num_heads=0), "num_heads = 0"),
    "rotary axes": (lambda m: m["model"].update(rotary_axes=2), "rotary_axes 2"),
    "end of turn": (lambda m: m["generation"].update(end_of_turn_id=8), "end_of_turn_id 8"),
    "no new tokens": (lambda m: m["generation"].update(max_new_tokens={"planning": 0}), r"max_new_tokens\.planning = 0"),
    "budgets of others": (lambda m: m["generation"].update(max_new_tokens={"speech": 4}), "max_new_tokens of speech"),
    "coordinates": (lambda m: m.update(coordinates="metres"), "has coordinates 'metres'; expected one of normalized"),
    "a camera twice": (lambda m: m.update(cameras=["a", "a"]), "names a camera twice: a, a"),
    "preprocessing": (lambda m: m.update(preprocessing=99), "preprocessing 99; this drivekd makes pixels by version"),
    "std": (lambda m: m["images"].update(std=[1, 0, 1]), "std"),
    "mean": (lambda m: m["images"].update(mean=[1, float("nan"), 1]), "mean"),
    "no prompts": (lambda m: m.update(prompts={}), "has no prompts"),
    "precision": (lambda m: m["graphs"]["vision"].update(precision="fp8"), "precision 'fp8'"),
    "block": (lambda m: m["graphs"]["vision"].update(block=-32), "block -32"),
    "atol": (lambda m: m["graphs"]["vision"].update(atol=float("nan")), "atol nan"),
    "negative size": (lambda m: m["files"]["vision.onnx"].update(bytes=-1), "-1 bytes"),
    "huge size": (lambda m: m["files"]["vision.onnx"].update(bytes=1 << 62), "the limit is"),
    "no tokenizer": (lambda m: m["files"].pop("tokenizer.json"), "does not belong|is not in"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    edit, message = LIES[lie]
    folder = edited(tmp_path / "bundle", edit)
    with pytest.raises(BundleError, match=message) as refused:
        load_bundle(folder)
    assert str(folder) in str(refused.value)


def with_decoder(tmp_path: Path, model: onnx.ModelProto) -> Path:
    return write_small_bundle(tmp_path / "bundle", **{"decoder_concat_onnx": model.SerializeToString()})


PLACES = ["../secret", "/etc/hostname", "./decoder.data", "sub/decoder.data", "golden.npz", "manifest.json", "", "decoder.data\0"]


@pytest.mark.parametrize("place", PLACES)
def test_weights_lie_in_the_stated_file_or_nowhere(tmp_path: Path, place: str) -> None:
    with pytest.raises(BundleError, match=r"the weights 'head' lie in"):
        load_bundle(with_decoder(tmp_path, decoder_model(place)))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "64"}, None),
        ({"offset": "4096"}, "128 bytes at 4096"),
        ({"offset": "-4"}, "has an offset or length '-4'"),
        ({"offset": "9" * 30}, "has an offset or length"),
        ({"length": "4"}, "stated length 4"),
        ({"length": str(1 << 60)}, "stated length"),
        ({"basepath": "/etc"}, "does not state one place"),
    ],
)
def test_weights_lie_within_their_file(tmp_path: Path, entries: dict[str, str], message: str | None) -> None:
    model = decoder_model(**entries)
    folder = with_decoder(tmp_path, model)
    if message is None:  # 64 + 128 bytes of 160: outside too
        message = "128 bytes at 64"
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def hidden_in(what: str, place: str) -> onnx.ModelProto:
    """A graph with a weight outside, somewhere else than among its initializers, or half stated there."""
    model = decoder_model()
    secret = external_tensor("secret", HEAD_WEIGHT, place)
    node = helper.make_node("Constant", [], ["unused"], "secret", value=secret)
    if what == "a node":
        model.graph.node.append(node)
    elif what == "a subgraph":
        output = helper.make_tensor_value_info("unused", TensorProto.FLOAT, None)
        body = helper.make_graph([node], "branch", [], [output])
        condition = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
        model.graph.initializer.append(condition)
        model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], "if", then_branch=body, else_branch=body))
    elif what == "a function":
        imports = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function("local", "F", [], ["unused"], [node], imports))
    elif what == "a list of tensors":
        attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSORS, tensors=[secret])
        model.graph.node[0].attribute.append(attribute)
    elif what == "a sparse tensor":
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=secret, dims=[32]))
    elif what == "a flag alone":
        del secret.external_data[:]
        model.graph.initializer.append(secret)
    elif what == "a place without a flag":
        secret.data_location = TensorProto.DEFAULT
        model.graph.initializer.append(secret)
    elif what == "two places":
        secret.external_data.add(key="location", value="decoder.data")
        model.graph.initializer.append(secret)
    return model


HIDING_PLACES = ["a node", "a subgraph", "a function", "a list of tensors", "a sparse tensor"]
HALF_STATED = ["a flag alone", "a place without a flag", "two places"]


@pytest.mark.parametrize("place", ["../secret", "decoder.data"])
@pytest.mark.parametrize("what", HIDING_PLACES)
def test_no_weight_hides(tmp_path: Path, what: str, place: str) -> None:
    """Not even in the verified data file: engines are given initializers by name, and would look on the disk for the rest."""
    with pytest.raises(BundleError, match="'secret' lies outside the file and is no initializer"):
        load_bundle(with_decoder(tmp_path, hidden_in(what, place)))


@pytest.mark.parametrize("what", HALF_STATED)
def test_a_half_stated_place_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(BundleError, match=r"'secret' (lie in '\.\./secret'|does not state one place)"):
        load_bundle(with_decoder(tmp_path, hidden_in(what, "../secret")))


@pytest.mark.parametrize("outside", [True, False])
def test_two_weights_of_one_name_are_refused(tmp_path: Path, outside: bool) -> None:
    model = decoder_model()
    twin = external_tensor("head", HEAD_WEIGHT, "decoder.data")
    model.graph.initializer.append(twin if outside else onnx.numpy_helper.from_array(HEAD_WEIGHT, "head"))
    with pytest.raises(BundleError, match="two weights of one name"):
        load_bundle(with_decoder(tmp_path, model))


def test_what_is_read_is_what_onnx_reads() -> None:
    for model in (vision_model(), decoder_model()):
        found = read_onnx(model.SerializeToString(), "here")
        assert found.ir_version == model.ir_version
        assert found.opsets == {entry.domain: entry.version for entry in model.opset_import}
        assert [tensor.name for tensor in found.inputs] == [tensor.name for tensor in model.graph.input]
        assert [tensor.name for tensor in found.outputs] == [tensor.name for tensor in model.graph.output]
        assert set(found.ops) == {(node.domain, node.op_type) for node in model.graph.node}
    external = {tensor.name: tensor for tensor in found.external}
    assert external["kv"].dims == (4, 2)
    assert (external["kv"].offset, external["kv"].length, external["kv"].nbytes) == (128, 32, 32)
    assert found.ops["", "Concat"] == OpUse(2, {"axis"})


def test_int4_weights_take_half_a_byte() -> None:
    model = decoder_model()
    tensor = external_tensor("w", HEAD_WEIGHT, "decoder.data")
    tensor.data_type, tensor.dims[:] = TensorProto.INT4, [3, 5]
    model.graph.initializer.append(tensor)
    found = {tensor.name: tensor for tensor in read_onnx(model.SerializeToString(), "here").external}
    assert (found["w"].dtype, found["w"].nbytes) == ("int4", 8)


def test_garbage_is_no_onnx_file() -> None:
    """Any bytes, and any cut or changed graph: a BundleError or a graph, never another exception or an endless loop."""
    rng = np.random.default_rng(0)
    good = decoder_model().SerializeToString()
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        for attempt in (bytes(data), bytes(data[: int(rng.integers(len(data)))]), rng.bytes(200)):
            try:
                read_onnx(attempt, "here")
            except BundleError:
                refused += 1
    assert refused > 300


def nested(depth: int) -> onnx.ModelProto:
    graph = decoder_model().graph
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    return helper.make_model(graph, ir_version=10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (nested(30).SerializeToString(), "graphs nested deeper"),
        (b"\x08\x0a\x3a\x00ORTM", "onnxruntime's own format"),
        (b"\x08" + b"\xff" * 11, "a number does not end"),
        (b"\x3b", "wire type 3"),
        (b"\x3a\x7f", "longer than the file"),
        (b"", "IR version 0"),
        (onnx.ModelProto(ir_version=11).SerializeToString(), "IR version 11"),
    ],
    ids=["nested", "ort format", "varint", "group", "length", "empty", "newer IR"],
)
def test_what_is_no_graph_of_ours_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    if b"ORTM" in data:
        data = data[:4] + b"ORTM"
    folder = write_small_bundle(tmp_path / "bundle", decoder_concat_onnx=data)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_an_operator_that_opens_files_is_refused(tmp_path: Path) -> None:
    model = decoder_model()
    model.graph.node.append(helper.make_node("EPContext", [], ["x"], domain="com.microsoft", ep_cache_context="../engine"))
    with pytest.raises(BundleError, match=r"com\.microsoft::EPContext, which opens files"):
        load_bundle(with_decoder(tmp_path, model))


def test_a_bundle_with_graphs_in_order_is_loaded(tmp_path: Path) -> None:
    """The way is open for what passes: the refusals above are refusals, not a closed door."""
    with pytest.raises(AssertionError, match="an engine was given"):
        load_bundle(write_small_bundle(tmp_path / "bundle"))


@pytest.mark.usefixtures("engine")
def test_onnxruntime_takes_weights_from_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes under the same name lie in the working directory and beside the bundle: they are not what is computed with."""
    folder = write_small_bundle(tmp_path / "bundle")
    bundle = read_bundle(folder)
    wrong = b"\xff" * len(DATA_BYTES)
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, folder):
        (place / "decoder.data").write_bytes(wrong)
    embeds = np.ones((1, 2, 4), np.float32)
    past = np.zeros((1, 1, 0, 2), np.float32)
    feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, 2), np.int64), "position_ids": np.zeros((1, 2), np.int64)}
    with OrtRunner(bundle, "decoder.concat", threads=1) as runner:
        found = runner.infer({**feeds, "past_key_values.0.key": past, "past_key_values.0.value": past})
    np.testing.assert_allclose(found["logits"].numpy(), HEAD_WEIGHT.sum(axis=0)[None], rtol=1e-6)  # fp32 sums of four


@pytest.mark.usefixtures("engine")
def test_why_the_check_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a graph given as bytes, onnxruntime reads a file of the working directory. When this fails, it no longer does."""
    weight = np.arange(4096, dtype=np.float32)
    (tmp_path / "secret").write_bytes(weight.tobytes())
    x, y = (TensorSpec(name, "float32", (4096,)) for name in "xy")
    spec = GraphSpec("add.onnx", None, (x,), (y,), 0.0)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    model = make_model([add], spec, [external_tensor("w", weight, "secret")])
    monkeypatch.chdir(tmp_path)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(4096, np.float32)})[0], weight)


def test_the_manifest_of_the_small_bundle_is_true(tmp_path: Path) -> None:
    bundle = read_bundle(write_small_bundle(tmp_path / "bundle"))
    assert isinstance(bundle.manifest, Manifest)
    assert dataclasses.replace(bundle.manifest, files={}) == dataclasses.replace(small_manifest({}), files={})
