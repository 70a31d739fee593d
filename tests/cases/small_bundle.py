"""A whole bundle in some 10 kB, with real graphs that onnxruntime loads: for tests of what is read before anything is loaded.

D = 4 hidden, V = 8 tokens, one layer, one K/V head of 2; images of 2 x 2 pixels become one token. decoder.concat.onnx keeps its
weights in decoder.data.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from drivekd.chat import ChatFormat
from drivekd.images import PREPROCESSING_VERSION, ImageSettings
from drivekd.runtime.bundle.manifest import (
    FORMAT_VERSION,
    EmbeddingSpec,
    FileEntry,
    Generation,
    GraphSpec,
    Manifest,
    ModelInfo,
    TensorSpec,
)

CHAT = ChatFormat("<u>", "<i>", "<x>", "</i>", "<a>", "<e>", 1)
HEAD_WEIGHT = np.arange(32, dtype=np.float32).reshape(4, 8)
KV_WEIGHT = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
DATA_BYTES = HEAD_WEIGHT.tobytes() + KV_WEIGHT.tobytes()

VISION = GraphSpec(
    "vision.onnx",
    None,
    (TensorSpec("pixel_values", "float32", ("images", 3, 2, 2)),),
    (TensorSpec("image_embeds", "float32", ("images", 1, 4)),),
    1e-4,
)
DECODER = GraphSpec(
    "decoder.concat.onnx",
    "decoder.data",
    (
        TensorSpec("inputs_embeds", "float32", ("batch", "seq", 4)),
        TensorSpec("attention_mask", "int64", ("batch", "total")),
        TensorSpec("position_ids", "int64", ("batch", "seq")),
        *(TensorSpec(f"past_key_values.0.{part}", "float32", ("batch", 1, "past", 2)) for part in ("key", "value")),
    ),
    (
        TensorSpec("logits", "float32", ("batch", 8)),
        *(TensorSpec(f"present.0.{part}", "float32", ("batch", 1, "past + seq", 2)) for part in ("key", "value")),
    ),
    1e-4,
)


def vision_model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 3, 2, 2), np.float32), "weight")
    shape = numpy_helper.from_array(np.asarray([-1, 1, 4]), "shape")
    nodes = [
        helper.make_node("Conv", ["pixel_values", "weight"], ["features"], "conv"),
        helper.make_node("Reshape", ["features", "shape"], ["image_embeds"], "rows"),
    ]
    return make_model(nodes, VISION, [weight, shape])


def decoder_model(location: str = "decoder.data", **entries: str) -> onnx.ModelProto:
    """entries: of the head weight's external data, in place of its true ones."""
    axis = numpy_helper.from_array(np.asarray([1]), "axis")
    size = len(HEAD_WEIGHT.tobytes())
    head = external_tensor("head", HEAD_WEIGHT, location, **{"offset": "0", "length": str(size), **entries})
    kv = external_tensor("kv", KV_WEIGHT, "decoder.data", offset=str(size), length=str(KV_WEIGHT.nbytes))
    nodes = [
        helper.make_node("ReduceMean", ["inputs_embeds", "axis"], ["mean"], "mean", keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"], "lm_head"),
        helper.make_node("MatMul", ["inputs_embeds", "kv"], ["rows"], "kv_proj"),
        helper.make_node("Unsqueeze", ["rows", "axis"], ["new"], "heads"),
        *(
            helper.make_node("Concat", [f"past_key_values.0.{part}", "new"], [f"present.0.{part}"], part, axis=2)
            for part in ("key", "value")
        ),
    ]
    return make_model(nodes, DECODER, [axis, head, kv])


def make_model(nodes: list[Any], spec: GraphSpec, initializers: list[Any]) -> onnx.ModelProto:
    inputs, outputs = [[value_info(tensor) for tensor in tensors] for tensors in (spec.inputs, spec.outputs)]
    graph = helper.make_graph(nodes, "main", inputs, outputs, initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, list(tensor.dims))


def external_tensor(name: str, value: np.ndarray[Any, Any], location: str, **entries: str) -> onnx.TensorProto:
    dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor = TensorProto(name=name, data_type=dtype, dims=value.shape, data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def small_files() -> dict[str, bytes]:
    """What the manifest lists, by name."""
    words = [CHAT.before_images, CHAT.image_start, CHAT.image_token, CHAT.image_end, CHAT.after_question, CHAT.end_of_turn]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate([*words, "?", "stop"])}, unk_token="?"))
    embedding = safetensors.numpy.save({"weight": np.arange(32, dtype=np.float32).reshape(8, 4)})
    return {
        "vision.onnx": vision_model().SerializeToString(),
        "decoder.concat.onnx": decoder_model().SerializeToString(),
        "decoder.data": DATA_BYTES,
        "embedding.safetensors": embedding,
        "tokenizer.json": tokenizer.to_str().encode(),
        "golden.npz": b"g" * len(embedding),  # never read here; as long as another file, so that two can change places
    }


def small_manifest(files: dict[str, bytes]) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        drivekd_version="0",
        precision="fp32",
        dialects=("concat",),
        model=ModelInfo("internvl", "00", 1, 1, 1, 2, 4, 8, 16, 1, "apache-2.0"),
        source={"kind": "checkpoint"},
        images=ImageSettings(2),
        chat=CHAT,
        prompts={"planning": "At {ego_speed_mps} m/s?"},
        variables={"ego_speed_mps": 8},
        cameras=("CAM_FRONT",),
        note="",
        preprocessing=PREPROCESSING_VERSION,
        coordinates="",
        structured_instruction="",
        data={},
        generation=Generation({"planning": 4}, 5),
        graphs={"vision": VISION, "decoder.concat": DECODER},
        embedding=EmbeddingSpec("fp32", 0),
        accuracy=(),
        parity=({"graph": "vision", "max_abs": 0.5, "passed": True},),
        files=entries(files),
    )


def entries(files: dict[str, bytes]) -> dict[str, FileEntry]:
    return {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}


def write_small_bundle(folder: Path, **changed: bytes) -> Path:
    """Write the bundle. changed: other bytes for a file, its name with "_" for "."; the manifest has their digests."""
    files = small_files() | {name.replace("_", "."): data for name, data in changed.items()}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_manifest(folder, small_manifest(files).to_bytes())
    return folder


def write_manifest(folder: Path, data: bytes) -> None:
    """A manifest with its right digest: what someone writes who wants to get past it."""
    (folder / "manifest.json").write_bytes(data)
    (folder / "bundle.sha256").write_text(hashlib.sha256(data).hexdigest() + "\n", encoding="utf-8")


def recompute(folder: Path, manifest: Manifest) -> None:
    """Give every file of the manifest its present digest and size, and the manifest its own."""
    files = {name: (folder / name).read_bytes() for name in manifest.files}
    write_manifest(folder, dataclasses.replace(manifest, files=entries(files)).to_bytes())
