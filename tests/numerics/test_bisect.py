"""Bisect names the layer that a fault was planted in, and none of a healthy bundle of any precision."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import numpy_helper

from drivekd.errors import BundleError, UsageError
from drivekd.export import bisect as bisecting
from drivekd.export import probed_graph
from drivekd.export.bisect import HEADER, STEP, BisectReport, bisect, bisect_bundle, decoder_feeds, relative_error, vision_feeds
from drivekd.export.calibration import record_ranges
from drivekd.export.graphs import write_graphs
from drivekd.export.layer_advice import advice, exclusion
from drivekd.export.layer_recording import record_layers
from drivekd.export.layer_values import (
    LAYERS_FILE,
    GraphValues,
    LayerValues,
    layer_values_from_bytes,
    layer_values_to_bytes,
    probe_places,
)
from drivekd.export.non_finite import NonFinite
from drivekd.export.quantization import GraphPlan, convert
from drivekd.export.source import Source, load_source
from drivekd.models.tiny import QWEN_SPECIAL_TOKENS, TinySize, build_tiny, build_tiny_qwen, train_tokenizer, write_checkpoint
from drivekd.runtime.bundle import Bundle, digest_line
from drivekd.runtime.golden import golden_images
from drivekd.runtime.manifest import EmbeddingSpec, FileEntry, Generation, Manifest

CORPUS = ["What are the important objects in the current scene? Signal: red. A white van is near.", "Brake to a stop."] * 20
WORDS = ["CAM_FRONT", "CAM_BACK"]
DEEP = TinySize(vision_layers=10, vision_width=32, language_layers=12, language_width=32, attention_heads=2, image_size_px=56)
QWEN = TinySize(vision_layers=3, vision_width=32, language_layers=3, language_width=64, attention_heads=2)
PRECISIONS = ("fp32", "fp16", "int8", "int4")

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def deep_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("deep") / "checkpoint"
    tokenizer = train_tokenizer(CORPUS, WORDS, 300)
    write_checkpoint(folder, build_tiny(DEEP, tokenizer, 0), tokenizer)
    return load_source(folder, None)


@pytest.fixture(scope="module")
def qwen_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("qwen") / "checkpoint"
    tokenizer = train_tokenizer(CORPUS, WORDS, 300, special_tokens=QWEN_SPECIAL_TOKENS)
    # 3 x 4 tokens in windows of 2 x 2: windows of 4, 2, 4, 2 tokens, which the graph sorts by size and torch does not
    write_checkpoint(folder, build_tiny_qwen(QWEN, tokenizer, 0), tokenizer, camera_size_px=(84, 112))
    return load_source(folder, None)


@pytest.fixture(scope="module")
def deep(deep_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(deep_source, tmp_path_factory.mktemp("deep-bundle"))


@pytest.fixture(scope="module")
def qwen(qwen_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(qwen_source, tmp_path_factory.mktemp("qwen-bundle"))


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    """Every test here."""


def recorded(source: Source) -> bytes:
    image = next(iter(golden_images(source.images.tile_px).values()))
    return record_layers(source.model, source.processor, image, "What is near, and where?")


def write_bundle(source: Source, folder: Path) -> Bundle:
    """What `drivekd export` writes, as far as bisect reads it: graphs, embedding, golden images, layers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    graphs = write_graphs(source, folder)
    (folder / LAYERS_FILE).write_bytes(recorded(source))
    torch.set_num_threads(threads)
    golden = io.BytesIO()
    np.savez(golden, images=np.stack(list(golden_images(source.images.tile_px).values())))
    (folder / "golden.npz").write_bytes(golden.getvalue())
    weight = source.model.get_input_embeddings().weight.detach().contiguous()
    (folder / "embedding.safetensors").write_bytes(safetensors.torch.save({"weight": weight}))
    (folder / "tokenizer.json").write_text(source.processor.tokenizer.to_str())
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    manifest = Manifest(
        format_version=2,
        drivekd_version="0",
        precision="fp32",
        dialects=("gqa", "concat"),
        model=source.info,
        source=source.origin,
        images=source.images,
        chat=source.processor.chat,
        prompts=source.prompts.prompts,
        variables=source.prompts.variables,
        cameras=(),
        note="",
        generation=Generation(8, source.processor.prompts.end_of_turn_id),
        graphs=graphs,
        embedding=EmbeddingSpec("fp32", 0),
        parity=(),
        accuracy=(),
        files={name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()},
    )
    data = manifest.to_bytes()
    (folder / "manifest.json").write_bytes(data)
    (folder / "bundle.sha256").write_bytes(digest_line(hashlib.sha256(data).hexdigest()))
    return Bundle(folder, "sha256:0", manifest, files)


def converted(bundle: Bundle, precision: str, out: Path) -> Bundle:
    """Every graph in that precision; int8 is calibrated on the golden frame itself."""
    expected = layer_values_from_bytes(bundle.files[LAYERS_FILE], "")
    feeds = {"vision": vision_feeds(bundle), "decoder": decoder_feeds(bundle, "decoder.concat", expected)}
    specs, graphs = bundle.manifest.graphs, {}
    out.mkdir(exist_ok=True)
    for name, spec in specs.items():
        calibration = None
        if precision == "int8":
            calibrated = "vision" if name == "vision" else "decoder"
            source = specs["vision" if name == "vision" else "decoder.concat"]
            calibration, _ = record_ranges(source, bundle.path, [feeds[calibrated]], ["golden"])  # type: ignore[list-item]
        graphs[name] = convert(spec, bundle.path, out, GraphPlan(precision), calibration)
    files = {**bundle.files, **{path.name: path.read_bytes() for path in out.iterdir()}}
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, graphs=graphs), files=files)


def edited(bundle: Bundle, graph: str, edit: Edit) -> Bundle:
    """The bundle with one graph changed, its weights inside the file; the files on disk stay as they are."""
    spec = bundle.manifest.graphs[graph]
    model = onnx.load_model_from_string(bundle.files[spec.file])
    if spec.data_file is not None:
        for tensor in model.graph.initializer:
            _take_inside(tensor, bundle.files[spec.data_file])
    edit(model)
    graphs = {**bundle.manifest.graphs, graph: dataclasses.replace(spec, data_file=None)}
    files = {**bundle.files, spec.file: model.SerializeToString()}
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, graphs=graphs), files=files)


def _take_inside(tensor: onnx.TensorProto, data: bytes) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = data[int(place["offset"]) :][: int(place["length"])]
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT


def change(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Change the values of one initializer."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name in (name, f"{name}.half"))
        values = numpy_helper.to_array(tensor).copy()
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(how(values), values.dtype), tensor.name))

    return edit


def one_value(add: float) -> Callable[[np.ndarray], np.ndarray]:
    def how(values: np.ndarray) -> np.ndarray:
        values.flat[len(values.flat) // 2] += add
        return values

    return how


def take(name: str, other: str) -> Edit:
    """One weight becomes a copy of another."""

    def edit(model: onnx.ModelProto) -> None:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        tensors[name].CopyFrom(tensors[other])
        tensors[name].name = name

    return edit


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def rewire(name: str, index: int, value: str | float) -> Edit:
    """Another value, or a constant, at one input of one node."""

    def edit(model: onnx.ModelProto) -> None:
        source = value
        if isinstance(value, float):
            source = "planted"
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), source))
        node_of(model, name).input[index] = source

    return edit


def operator(name: str, op_type: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node_of(model, name).op_type = op_type

    return edit


def attribute(name: str, key: str, value: float) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, name)
        kept = [item for item in node.attribute if item.name != key]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(key, value)])

    return edit


def attention_swapped(layer: int) -> Edit:
    """GroupQueryAttention with its rotary tables exchanged."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, f"layers.{layer}.self_attn.attention")
        node.input[7], node.input[8] = node.input[8], node.input[7]

    return edit


VISION, CONCAT, GQA = "vision", "decoder.concat", "decoder.gqa"

# 20 faults in 20 layers: 8 of the 10 vision layers and 12 of the 12 decoder layers; the last one is test_overflow's
FAULTS: list[tuple[str, int, str, Edit]] = [
    (VISION, 0, "weights scaled", change("vision.layers.0.mlp.fc2.weight", lambda w: w * 1.02)),
    (VISION, 1, "weights zeroed", change("vision.layers.1.attention.projection_layer.weight", lambda w: w * 0)),
    (VISION, 2, "one bias added", change("vision.layers.2.mlp.fc1.bias", one_value(0.05))),
    (VISION, 3, "weight transposed", change("vision.layers.3.attention.v_proj.weight", lambda w: w.T)),
    (VISION, 4, "wrong softmax scale", rewire("vision.layers.4.attention.mul", 1, 0.3)),
    (VISION, 5, "wrong norm epsilon", attribute("vision.layers.5.layernorm_after", "epsilon", 1e-3)),
    (VISION, 7, "layer scale of one channel", change("vision.layers.7.lambda_1", one_value(-0.1))),
    (VISION, 9, "weights of the layer before", take("vision.layers.9.mlp.fc1.weight", "vision.layers.8.mlp.fc1.weight")),
    (CONCAT, 0, "rotated the wrong way", operator("layers.0.self_attn.rotary_sub", "Add")),
    (CONCAT, 1, "no attention mask", rewire("layers.1.self_attn.softmax", 0, "layers.1.self_attn.scores_split.value")),
    (CONCAT, 3, "wrong norm epsilon", rewire("layers.3.input_layernorm.add", 1, 1e-4)),
    (CONCAT, 5, "gate and up swapped", change("layers.5.mlp.gate_up_proj.weight", lambda w: np.roll(w, w.shape[1] // 2, axis=1))),
    (CONCAT, 8, "one weight NaN", change("layers.8.mlp.down_proj.weight", one_value(float("nan")))),
    (CONCAT, 11, "one weight changed", change("layers.11.self_attn.o_proj.weight", one_value(0.05))),
    (GQA, 2, "wrong softmax scale", attribute("layers.2.self_attn.attention", "scale", 0.3)),
    (GQA, 4, "rotary tables exchanged", attention_swapped(4)),
    (GQA, 7, "one bias added", change("layers.7.self_attn.qkv_proj.bias", one_value(0.2))),
    (GQA, 9, "weights rounded to 8 bits", change("layers.9.mlp.down_proj.weight", lambda w: (w * 256).round() / 256)),
    (GQA, 10, "wrong norm epsilon", attribute("layers.10.post_attention_layernorm.norm", "epsilon", 1e-4)),
]


def value_name(graph: str, layer: int) -> str:
    return f"vision.layers.{layer}.output" if graph == "vision" else f"layers.{layer}.output"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[0]}-{fault[1]}-{fault[2]}".replace(" ", "-"))
def test_a_planted_fault_is_named(deep: Bundle, fault: tuple[str, int, str, Edit]) -> None:
    graph, layer, _, edit = fault
    report = bisect(edited(deep, graph, edit), threads=1)
    assert report.first is not None
    assert (report.first.graph, report.first.value) == (graph, value_name(graph, layer))
    other = [row for row in report.rows if row.graph != graph]
    assert all(row.verdict == "ok" for row in other), "the other graphs were not touched"
    behind = [row for row in report.rows if row.graph == graph][layer + 1 :]
    assert {row.verdict for row in behind} == {"follows"}
    assert not report.passed
    assert f"{graph}: {value_name(graph, layer)} is the first beyond tolerance" in report.verdict
    assert f"{graph} is fp32, so no rounding explains this" in report.suggestion


def test_the_faults_are_in_twenty_layers() -> None:
    """With test_overflow_in_fp16_is_named_with_its_node's layer 6."""
    layers = {(graph == "vision", layer) for graph, layer, _, _ in FAULTS} | {(False, 6)}
    assert len(layers) == len(FAULTS) + 1 == 20


@pytest.mark.parametrize("family", ["deep", "qwen"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_healthy_bundle_names_none(family: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle = request.getfixturevalue(family)
    report = bisect(bundle if precision == "fp32" else converted(bundle, precision, tmp_path), threads=1)
    assert report.passed, report.verdict
    assert report.suggestion == ""
    layers = len(layer_values_from_bytes(bundle.files[LAYERS_FILE], "").vision.layers)
    decoder = bundle.manifest.model.num_layers
    assert len(report.rows) == layers + 1 + 1 + 2 * (decoder + 1)
    worst = max(row.error / STEP[row.precision] for row in report.rows if row.graph != "embedding")
    assert worst > 1e-3, "nothing was compared"


def larger_inside(layer: int, factor: float) -> Edit:
    """The same function in float32: what the MLP makes is larger, and made smaller again."""

    def up_half(weight: np.ndarray) -> np.ndarray:
        gate, up = np.split(weight, 2, axis=1)
        return np.concatenate([gate, up * factor], axis=1)

    def edit(model: onnx.ModelProto) -> None:
        change(f"layers.{layer}.mlp.gate_up_proj.weight", up_half)(model)
        change(f"layers.{layer}.mlp.down_proj.weight", lambda w: w / factor)(model)

    return edit


def test_overflow_in_fp16_is_named_with_its_node(deep: Bundle, tmp_path: Path) -> None:
    """Nothing is wrong but the range: onnxruntime's CPU would not even notice, since it computes fp16 graphs in float32."""
    enlarged = edited(deep, GQA, larger_inside(6, 2.0**17))
    assert bisect(enlarged, threads=1).passed, "in fp32 it is the same function"
    folder = tmp_path / "enlarged"
    folder.mkdir()
    for name, data in enlarged.files.items():
        (folder / name).write_bytes(data)
    half = converted(dataclasses.replace(enlarged, path=folder), "fp16", tmp_path / "half")
    report = bisect(half, threads=1)
    assert report.first is not None
    assert (report.first.graph, report.first.value, report.first.error) == (GQA, "layers.6.output", float("inf"))
    assert report.suggestion.startswith("layer 6 in fp32; node layers.6.mlp.gate_up_proj (MatMul) gives")
    assert report.suggestion.endswith("export again with --set 'exclude=[layers.6.*]'")


def test_a_layer_that_int4_destroys_gets_an_exclusion(deep: Bundle, tmp_path: Path) -> None:
    """One enormous weight leaves nothing of its block's others."""
    name = "layers.7.mlp.down_proj.weight"
    outlier = change(name, lambda w: np.where(np.arange(w.shape[0])[:, None] % 32 == 0, 0, w))
    graphs = edited(deep, CONCAT, outlier)
    expected = bisect(graphs, threads=1)
    assert expected.first is not None
    report = bisect(dataclasses.replace(graphs, manifest=as_precision(graphs.manifest, CONCAT, "int4")), threads=1)
    assert report.passed, "a fault that is smaller than int4's own rounding does not show"
    gone = edited(deep, CONCAT, change(name, lambda w: w * 40))
    report = bisect(dataclasses.replace(gone, manifest=as_precision(gone.manifest, CONCAT, "int4")), threads=1)
    assert report.first is not None
    assert report.first.value == "layers.7.output"
    assert report.suggestion == (
        "layer 7 loses too much in int4; leave it in higher precision: export again with --set 'exclude=[layers.7.*]'"
    )


def as_precision(manifest: Manifest, graph: str, precision: str) -> Manifest:
    spec = dataclasses.replace(manifest.graphs[graph], precision=precision)
    return dataclasses.replace(manifest, graphs={**manifest.graphs, graph: spec})


def test_faults_behind_the_layers_are_named_by_the_output(deep: Bundle) -> None:
    head = bisect(edited(deep, CONCAT, change("lm_head.weight", lambda w: w * 1.01)), threads=1)
    assert head.first is not None
    assert (head.first.graph, head.first.value) == (CONCAT, "logits")
    projector = bisect(edited(deep, VISION, change("projector.linear_1.bias", one_value(0.5))), threads=1)
    assert projector.first is not None
    assert (projector.first.graph, projector.first.value) == (VISION, "image_embeds")


def test_a_wrong_embedding_is_not_the_decoders_fault(deep: Bundle, deep_source: Source) -> None:
    weight = deep_source.model.get_input_embeddings().weight.detach().roll(1, 0).contiguous()
    files = {**deep.files, "embedding.safetensors": safetensors.torch.save({"weight": weight})}
    report = bisect(dataclasses.replace(deep, files=files), threads=1)
    assert report.first is not None
    assert report.first.graph == "embedding"
    assert "does not hold the checkpoint's rows" in report.suggestion
    assert all(row.verdict == "ok" for row in report.rows if row.graph != "embedding")


def test_faults_in_two_graphs_name_the_first(deep: Bundle) -> None:
    both = edited(edited(deep, CONCAT, FAULTS[10][3]), VISION, FAULTS[2][3])
    report = bisect(both, threads=1)
    assert report.first is not None
    assert (report.first.graph, report.first.value) == (VISION, "vision.layers.2.output")
    assert [row.value for row in report.rows if row.verdict == "BEYOND"] == ["vision.layers.2.output", "layers.3.output"]


def test_a_bundle_on_disk(deep: Bundle) -> None:
    """bisect_bundle verifies first: what it runs is what the digests say."""
    report = bisect_bundle(deep.path, threads=1)
    assert report.passed
    assert report.bundle.startswith("sha256:")
    rows = report.table()
    assert all(len(row) == len(HEADER) for row in rows)
    assert rows[0][:2] == ["vision", "vision.layers.0.output"]
    assert report.verdict == f"every one of {len(rows)} values is within its tolerance"
    assert report.to_json()["first"] is None


def test_what_is_missing_is_said(deep: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: data for name, data in deep.files.items() if name != LAYERS_FILE}
    with pytest.raises(BundleError, match=r"layers.npz is missing, so there is nothing to compare layers with"):
        bisect(dataclasses.replace(deep, files=without), threads=1)
    with pytest.raises(BundleError, match=r"layers.npz cannot be read"):
        bisect(dataclasses.replace(deep, files={**deep.files, LAYERS_FILE: b"PK"}), threads=1)
    renamed = edited(deep, GQA, _forget_names)
    with pytest.raises(BundleError, match=r"decoder.gqa.onnx has no value 'layers.0.output' \(12 of 13 are missing\)"):
        bisect(renamed, threads=1)
    with pytest.raises(BundleError, match="not a bundle directory"):
        bisect_bundle(tmp_path / "none")
    monkeypatch.setattr(probed_graph.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'drivekd\[export\]'"):
        bisect_bundle(deep.path)


def _forget_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name.startswith("layers.") and name.endswith(".output"):
                    names[index] = name.replace("output", "hidden")


def test_the_recording_is_the_same_twice_and_fits_its_graphs(deep_source: Source, deep: Bundle) -> None:
    assert recorded(deep_source) == deep.files[LAYERS_FILE]
    values = layer_values_from_bytes(deep.files[LAYERS_FILE], "")
    assert values.vision.layers.shape == (10, 6, 32)
    assert values.decoder.layers.shape == (12, 6, 32)
    assert values.inputs_embeds.shape == (len(values.input_ids), 32)
    assert (values.input_ids == -1).sum() == deep_source.processor.chat.tokens_per_image
    assert layer_values_to_bytes(values) == deep.files[LAYERS_FILE]


def test_the_1b_model_takes_less_than_2_mb() -> None:
    """InternVL3-1B: 24 vision layers of 1,024, 24 decoder layers of 896, 256 tokens an image and 70 of text, 151,674 words."""
    vision = GraphValues(np.zeros((24, 6, 1024), np.float32), np.zeros((6, 896), np.float32))
    decoder = GraphValues(np.zeros((24, 6, 896), np.float32), np.zeros((1, len(probe_places(151_674, 2048))), np.float32))
    length = 256 + 70
    values = LayerValues(vision, decoder, np.zeros((length, 896), np.float32), np.zeros(length, int), np.zeros((1, length), int))
    assert 1e6 < len(layer_values_to_bytes(values)) < 2e6


def test_probes_hold_the_first_and_the_last_place() -> None:
    for total in (1, 2, 5, 6, 7, 100, 1025):
        places = probe_places(total)
        assert (places[0], places[-1]) == (0, total - 1)
        assert len(places) == min(6, total)
        assert (np.diff(places) > 0).all()


def test_the_error_of_an_array() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(expected, expected + np.array([[0, 0], [0.5, 0]], np.float32)) == pytest.approx(0.5)  # of its own row
    for broken in (np.full_like(expected, np.nan), np.full_like(expected, np.inf), expected[:1]):
        assert relative_error(expected, broken) == float("inf")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounding_that_adds_up_is_healthy_and_a_jump_is_not(precision: str) -> None:
    """Property: errors that grow by half a step a layer, in squares, are never beyond; ten steps at once always are."""
    step = STEP[precision]
    names = [f"layers.{layer}.output" for layer in range(48)]
    healthy = [0.5 * step * (layer + 1) ** 0.5 for layer in range(48)]
    assert {row.verdict for row in bisecting.judged_rows("decoder.gqa", names, precision, healthy)} == {"ok"}
    for place in (0, 20, 47):
        jumped = [error + 10 * step * (layer >= place) for layer, error in enumerate(healthy)]
        rows = bisecting.judged_rows("decoder.gqa", names, precision, jumped)
        assert [row.verdict for row in rows].index("BEYOND") == place


ADVICE: list[tuple[tuple[Any, ...], str]] = [
    (("decoder.gqa", "layers.7.output", "int4", None), r"layer 7 loses too much in int4; .*--set 'exclude=\[layers.7.\*\]'"),
    (("vision", "vision.layers.3.output", "int8", None), r"vision layer 3 loses .*--set 'exclude=\[vision.layers.3.\*\]'"),
    (("decoder.gqa", "logits", "int4", None), r"the last norm or lm_head loses .*exclude=\[lm_head\]"),
    (("vision", "image_embeds", "int8", None), r"the projector loses .*exclude=\[projector.\*\]"),
    (
        ("decoder.concat", "layers.7.output", "fp16", NonFinite("layers.7.input_layernorm.variance", "ReduceMean")),
        r"norm of layer 7 in fp32; node layers.7.input_layernorm.variance \(ReduceMean\) .* 65,504.*exclude=\[layers.7.\*\]",
    ),
    (
        ("decoder.concat", "layers.2.output", "fp16", NonFinite("layers.2.self_attn.softmax", "Softmax")),
        r"softmax of layer 2 in fp32; ",
    ),
    (
        ("decoder.concat", "layers.2.output", "fp32", NonFinite("layers.2.mlp.add", "Add")),
        r"fp32.* node layers.2.mlp.add \(Add\)",
    ),
    (("embedding", "rows of the prompt", "int4", None), "lose too much in int4"),
]


@pytest.mark.parametrize(("given", "said"), ADVICE)
def test_advice_names_the_option(given: tuple[Any, ...], said: str) -> None:
    assert re.search(said, advice(*given))


def test_the_suggested_option_is_one_that_export_takes() -> None:
    """The words behind "export again with", as a shell would split them, come out as the pattern."""
    from drivekd.export.plan import plan_from_options

    said = advice("decoder.gqa", "layers.7.output", "fp16", None)
    option, value = shlex.split(said.partition("export again with ")[2])
    assert option == "--set"
    assert plan_from_options("fp16", [value]).settings.exclude == ["layers.7.*"]


def test_exclusions_match_the_nodes_of_their_layer_alone(deep: Bundle) -> None:
    """The pattern that is suggested is one that export takes: it finds this layer's MatMuls, not those of layer 10 to 19."""
    from drivekd.export.matmuls import matching

    model = probed_graph.load_graph(deep, CONCAT)
    names = [node.name for node in model.graph.node]
    found = matching([exclusion("layers.1.output")], names)
    assert "layers.1.mlp.down_proj" in found
    assert all(name.startswith("layers.1.") for name in found)
    assert matching([exclusion("logits")], names)
    vision = [node.name for node in probed_graph.load_graph(deep, VISION).graph.node]
    assert "projector.linear_1" in matching([exclusion("image_embeds")], vision)


def test_a_report_is_a_table_for_a_person(deep: Bundle) -> None:
    report: BisectReport = bisect(edited(deep, VISION, FAULTS[2][3]), threads=1)
    rows = {row[1]: row for row in report.table() if row[0] == "vision"}
    assert rows["vision.layers.1.output"][4] == "ok"
    assert rows["vision.layers.2.output"][4] == "BEYOND"
    assert rows["image_embeds"][4] == "follows"
    stated = report.to_json()
    assert (stated["passed"], stated["first"]["value"]) == (False, "vision.layers.2.output")
