"""What the tests of bisect share: bundles as `drivekd export` writes them, and faults to plant in their graphs."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
import torch
from onnx import numpy_helper

from drivekd.export.graphs.graphs import write_graphs
from drivekd.export.parity.bisect import decoder_feeds, vision_feeds
from drivekd.export.quantize.calibration import record_ranges
from drivekd.export.quantize.convert import GraphPlan, convert
from drivekd.export.source.layer_recording import record_layers
from drivekd.export.source.layer_values import LAYERS_FILE, layer_values_from_bytes
from drivekd.export.source.source import Source, load_source
from drivekd.images import PREPROCESSING_VERSION
from drivekd.models.tiny import QWEN_SPECIAL_TOKENS, TinySize, build_tiny, build_tiny_qwen, train_tokenizer, write_checkpoint
from drivekd.runtime.bundle.manifest import FORMAT_VERSION, EmbeddingSpec, FileEntry, Generation, Manifest
from drivekd.runtime.bundle.reader import Bundle, digest_line
from drivekd.runtime.parity.golden import golden_images

CORPUS = ["What are the important objects in the current scene? Signal: red. A white van is near.", "Brake to a stop."] * 20
WORDS = ["CAM_FRONT", "CAM_BACK"]
DEEP = TinySize(vision_layers=10, vision_width=32, language_layers=12, language_width=32, attention_heads=2, image_size_px=56)
QWEN = TinySize(vision_layers=3, vision_width=32, language_layers=3, language_width=64, attention_heads=2)

Edit = Callable[[onnx.ModelProto], None]


def write_deep_source(folder: Path) -> Source:
    """InternVL of ten vision and twelve language layers."""
    tokenizer = train_tokenizer(CORPUS, WORDS, 300)
    write_checkpoint(folder, build_tiny(DEEP, tokenizer, 0), tokenizer)
    return load_source(folder, None)


def write_qwen_source(folder: Path) -> Source:
    tokenizer = train_tokenizer(CORPUS, WORDS, 300, special_tokens=QWEN_SPECIAL_TOKENS)
    # 3 x 4 tokens in windows of 2 x 2: windows of 4, 2, 4, 2 tokens, which the graph sorts by size and torch does not
    write_checkpoint(folder, build_tiny_qwen(QWEN, tokenizer, 0), tokenizer, camera_size_px=(84, 112))
    return load_source(folder, None)


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
    (folder / "tokenizer.json").write_text(source.processor.tokenizer.to_str(), encoding="utf-8")
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
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
        preprocessing=PREPROCESSING_VERSION,
        coordinates="",
        structured_instruction="",
        data={},
        generation=Generation(dict.fromkeys(source.prompts.prompts, 8), source.processor.prompts.end_of_turn_id),
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
        plan = GraphPlan(precision, int8_inputs=precision == "int8")
        graphs[name] = convert(spec, bundle.path, out, plan, calibration=calibration)
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
