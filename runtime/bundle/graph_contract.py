"""A verified manifest may still lie: whoever edits it by hand also computes its digest. Here it is held against the graphs.

Every graph's file is read (not loaded) and its inputs, outputs and external data must be what the manifest says; the sizes of the
model must be the sizes in the decoders. What passes cannot make an engine read another file, or the runtime allocate by a number
that no graph has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from drivekd.contract import COORDINATES
from drivekd.errors import BundleError
from drivekd.typed_json import json_from_dataclass

from .manifest import DIALECTS, MANIFEST_FILE, PRECISIONS, GraphSpec, Manifest, TensorSpec
from .onnx_file import ExternalTensor, GraphTensor, OnnxFile, read_onnx

PARTS = ("key", "value")


def past_names(num_layers: int) -> list[str]:
    """Input names of the decoder's K/V, in graph order."""
    return [f"past_key_values.{layer}.{part}" for layer in range(num_layers) for part in PARTS]


def present_names(num_layers: int) -> list[str]:
    """Output names of the decoder's K/V, in the order of `past_names`."""
    return [f"present.{layer}.{part}" for layer in range(num_layers) for part in PARTS]


MAX_IR_VERSION = 10  # what every onnxruntime since 1.20 reads; the exporter writes it
DTYPES = ("float32", "float16", "int64", "int32")  # of graph inputs and outputs: what the runtime feeds and reads
NEEDED_FILES = ("tokenizer.json", "embedding.safetensors")
MAX_POSITIONS = 1 << 24  # bounds what a K/V buffer may be asked to hold; real models have some 1e5
OUTSIDE_OPS = {("com.microsoft", "EPContext")}  # makes an engine open a file that the node names


def check_graphs(manifest: Manifest, files: Mapping[str, bytes], where: str) -> dict[str, OnnxFile]:
    """Hold a manifest against its bundle's verified bytes; returns what the graphs say, by name.

    Raises BundleError naming `where`, graph and tensor.
    """
    check_names(manifest, where)
    graphs = {name: read_onnx(files[spec.file], f"{where}: {spec.file}") for name, spec in manifest.graphs.items()}
    for name, spec in manifest.graphs.items():
        _check_graph(graphs[name], spec, files, f"{where}: {spec.file}")
    return graphs


def check_names(manifest: Manifest, where: str) -> None:
    """All that can be said before a graph is read. Raises BundleError."""
    _check_tiles(manifest, where)
    _check_numbers(manifest, where)
    if not manifest.dialects or len(set(manifest.dialects)) != len(manifest.dialects) or set(manifest.dialects) - set(DIALECTS):
        known = ", ".join(DIALECTS)
        raise BundleError(f"{where}: dialects are {list(manifest.dialects)}; expected one or more of {known}, each once")
    expected = {"vision", *(f"decoder.{dialect}" for dialect in manifest.dialects)}
    if set(manifest.graphs) != expected:
        raise BundleError(f"{where}: {MANIFEST_FILE} has the graphs {sorted(manifest.graphs)}, expected {sorted(expected)}")
    for name, spec in manifest.graphs.items():
        _check_spec(name, spec, manifest, where)
    for name in NEEDED_FILES:
        if name not in manifest.files:
            raise BundleError(f"{where}: {name} is not in {MANIFEST_FILE}'s files; export the checkpoint again")


def _check_tiles(manifest: Manifest, where: str) -> None:
    try:
        tiles = manifest.images.tiling.num_tiles
    except ValueError as error:
        raise BundleError(f"{where}: {MANIFEST_FILE}: images.tiles: {error}") from error
    if manifest.chat.tokens_per_image % tiles:
        raise BundleError(
            f"{where}: {MANIFEST_FILE} gives {manifest.chat.tokens_per_image} tokens an image; its {tiles} tiles "
            f"({manifest.images.tiling}) cannot have as many each"
        )


def _check_numbers(manifest: Manifest, where: str) -> None:
    model, generation, images = manifest.model, manifest.generation, json_from_dataclass(manifest.images)
    sizes = {
        **{f"images.{name}": value for name, value in images.items() if isinstance(value, int)},
        **{name: getattr(model, name) for name in ("num_layers", "num_heads", "num_kv_heads", "head_dim")},
        **{name: getattr(model, name) for name in ("hidden_size", "vocab_size", "max_positions")},
        **{f"max_new_tokens.{name}": tokens for name, tokens in generation.max_new_tokens.items()},
        "tokens_per_image": manifest.chat.tokens_per_image,
    }
    for name, size in sizes.items():
        if not 1 <= size <= MAX_POSITIONS:
            raise BundleError(f"{where}: {MANIFEST_FILE} gives {name} = {size}; expected 1 to {MAX_POSITIONS}")
    if not 0 <= generation.end_of_turn_id < model.vocab_size:
        raise BundleError(f"{where}: end_of_turn_id {generation.end_of_turn_id} is not one of {model.vocab_size} token ids")
    if model.num_heads % model.num_kv_heads or model.rotary_axes not in (1, 3):
        raise BundleError(
            f"{where}: {model.num_heads} heads cannot share {model.num_kv_heads} K/V heads, or rotary_axes "
            f"{model.rotary_axes} is neither 1 nor 3"
        )
    if not all(0 < value < float("inf") for value in manifest.images.std) or not all(map(isfinite, manifest.images.mean)):
        raise BundleError(
            f"{where}: images have mean {manifest.images.mean} and std {manifest.images.std}; nothing can be scaled"
        )
    if not manifest.prompts:
        raise BundleError(f"{where}: {MANIFEST_FILE} has no prompts, so there is nothing to ask")
    if set(manifest.prompts) != set(generation.max_new_tokens):
        raise BundleError(
            f"{where}: {MANIFEST_FILE} has prompts of {', '.join(manifest.prompts)}, but max_new_tokens of "
            f"{', '.join(generation.max_new_tokens) or 'nothing'}"
        )
    if manifest.coordinates not in ("", *COORDINATES):
        known = ", ".join(COORDINATES)
        raise BundleError(f"{where}: {MANIFEST_FILE} has coordinates {manifest.coordinates!r}; expected one of {known}")
    if len(set(manifest.cameras)) != len(manifest.cameras):
        raise BundleError(f"{where}: {MANIFEST_FILE} names a camera twice: {', '.join(manifest.cameras)}")


def _check_spec(name: str, spec: GraphSpec, manifest: Manifest, where: str) -> None:
    for file in (spec.file, spec.data_file):
        if file is not None and file not in manifest.files:
            raise BundleError(f"{where}: graph {name!r} names the file {file!r}, which is none of this bundle's files")
    if spec.precision not in PRECISIONS or spec.block < 0 or not 0 <= spec.atol < float("inf"):
        raise BundleError(f"{where}: graph {name!r} has precision {spec.precision!r}, block {spec.block}, atol {spec.atol}")
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.dtype not in DTYPES:
            raise BundleError(f"{where}: graph {name!r}: {tensor.name} is {tensor.dtype}; this drivekd feeds {', '.join(DTYPES)}")
    expected = _vision_sizes(manifest) if name == "vision" else _decoder_sizes(spec, manifest, where)
    tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    for tensor_name, axis, size in expected:
        _check_size(tensors.get(tensor_name), tensor_name, axis, size, f"{where}: graph {name!r}")


def _check_size(tensor: TensorSpec | None, name: str, axis: int, size: int, where: str) -> None:
    if tensor is None:
        raise BundleError(f"{where} has no tensor {name!r}")
    if not -len(tensor.dims) <= axis < len(tensor.dims) or tensor.dims[axis] != size:
        raise BundleError(f"{where}: {name} is {list(tensor.dims)}; the model's sizes in {MANIFEST_FILE} want {size} at {axis}")


def _vision_sizes(manifest: Manifest) -> list[tuple[str, int, int]]:
    shape = manifest.images.pixel_shape
    pixels = [("pixel_values", axis - len(shape), size) for axis, size in enumerate(shape)]
    return [*pixels, ("image_embeds", -2, manifest.chat.tokens_per_image), ("image_embeds", -1, manifest.model.hidden_size)]


def _decoder_sizes(spec: GraphSpec, manifest: Manifest, where: str) -> list[tuple[str, int, int]]:
    model = manifest.model
    found = sum(tensor.name.startswith("past_key_values.") for tensor in spec.inputs)
    if found != 2 * model.num_layers:  # counted before num_layers names are made
        raise BundleError(f"{where}: {spec.file} has {found} K/V inputs, {MANIFEST_FILE} says {model.num_layers} layers")
    names = [*past_names(model.num_layers), *present_names(model.num_layers)]
    kv = [(name, axis, size) for name in names for axis, size in ((1, model.num_kv_heads), (3, model.head_dim))]
    return [("inputs_embeds", -1, model.hidden_size), ("logits", -1, model.vocab_size), *kv]


def _check_graph(graph: OnnxFile, spec: GraphSpec, files: Mapping[str, bytes], where: str) -> None:
    if not 1 <= graph.ir_version <= MAX_IR_VERSION:
        raise BundleError(f"{where} has ONNX IR version {graph.ir_version}; drivekd's bundles have at most {MAX_IR_VERSION}")
    if outside := OUTSIDE_OPS & set(graph.ops):
        raise BundleError(f"{where} has the operator {'::'.join(min(outside))}, which opens files of its own")
    _check_tensors(graph.inputs, spec.inputs, "input", where)
    _check_tensors(graph.outputs, spec.outputs, "output", where)
    if len(set(graph.initializers)) != len(graph.initializers):
        raise BundleError(f"{where} has two weights of one name; an engine could take either")
    for tensor in graph.external:
        _check_external(tensor, spec, files, where)


def _check_tensors(found: Sequence[GraphTensor], stated: Sequence[TensorSpec], kind: str, where: str) -> None:
    names = [tensor.name for tensor in found], [tensor.name for tensor in stated]
    if names[0] != names[1]:
        raise BundleError(f"{where} has the {kind}s {_shown(names[0])}, {MANIFEST_FILE} says {_shown(names[1])}")
    for tensor, spec in zip(found, stated, strict=True):
        if tensor.dtype != spec.dtype or not _fits(tensor, spec, kind):
            raise BundleError(
                f"{where}: {kind} {tensor.name} is {tensor.dtype} {_dims(tensor.dims)}, "
                f"{MANIFEST_FILE} says {spec.dtype} {_dims(spec.dims)}"
            )


def _fits(tensor: GraphTensor, spec: TensorSpec, kind: str) -> bool:
    """A size in the graph must be the manifest's; a free one may be a size there in outputs, where exporters infer little."""
    if tensor.dims is None:
        return kind == "output"
    if len(tensor.dims) != len(spec.dims):
        return False
    pairs = zip(tensor.dims, spec.dims, strict=True)
    return all(there == here if isinstance(there, int) else kind == "output" or isinstance(here, str) for there, here in pairs)


def _check_external(tensor: ExternalTensor, spec: GraphSpec, files: Mapping[str, bytes], where: str) -> None:
    if tensor.location != spec.data_file:
        raise BundleError(
            f"{where}: the weights {tensor.name!r} lie in {tensor.location!r}, expected "
            f"{spec.data_file!r}" + (": a path out of the bundle?" if spec.data_file else " (all weights inside the graph)")
        )
    size = len(files[tensor.location])
    if tensor.offset + tensor.nbytes > size or tensor.length not in (None, tensor.nbytes):
        raise BundleError(
            f"{where}: the weights {tensor.name!r} are {tensor.nbytes} bytes at {tensor.offset} (stated length {tensor.length}), "
            f"but {tensor.location} has {size} bytes"
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _dims(dims: Sequence[int | str] | None) -> str:
    return "of no stated shape" if dims is None else f"[{', '.join(map(str, dims))}]"
