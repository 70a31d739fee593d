"""What manifest.json says: the one schema that the exporter writes and the runtime reads.

bundle/
  manifest.json          this file's Manifest; no timestamps, so equal checkpoints give equal bundles
  bundle.sha256          sha256 of manifest.json's raw bytes
  vision.onnx            pixel_values -> image_embeds
  decoder.concat.onnx    inputs_embeds + past -> logits + present; K/V grow by concatenation: any engine
  decoder.gqa.onnx       the same over K/V of fixed capacity, written in place: onnxruntime's GroupQueryAttention
  vision.data            weights of vision.onnx when they lie beside it
  decoder.data           weights of the decoders; those that agree are stored once
  embedding.safetensors  [V, D] as EmbeddingSpec says, gathered on the host
  tokenizer.json
  schemas.json           of structured answers, by capability; drivekd's own where there is none
  calibration.json       of confidences, by capability, where there is one
  data_traces.safetensors   hashes of what was trained on, where training left them
  golden.npz             inputs and this bundle's own ORT-CPU outputs at export
  layers.npz             what the model's layers put out, for `check --bisect`
  bundle.sig             a signature, when there is one; outside the digest
  engines/               engines built on their target; outside this digest, each with its own
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from drivekd.chat import ChatFormat
from drivekd.contract import Variable
from drivekd.errors import BundleError
from drivekd.images import PREPROCESSING_VERSION, ImageSettings, PatchSettings, TiledSettings
from drivekd.typed_json import TypedJsonError, dataclass_from_json, json_from_dataclass

FORMAT_VERSION = 4
MANIFEST_FILE = "manifest.json"
DIGEST_FILE = "bundle.sha256"
ENGINES_DIR = "engines"

PRECISIONS = ("fp32", "fp16", "int8", "int4")  # of a graph or the embedding
DIALECTS = ("gqa", "concat")  # ways to keep K/V, in the order in which onnxruntime on a CPU prefers them


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. dims: numbers are fixed, names are free; equal names are equal sizes."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph.

    data_file: where its weights lie when they are not inside `file`; graphs may share one. atol: of its parity check.
    precision: "fp32", "fp16", "int8" or "int4". block: weights that share a scale, 0 = none. excluded: names of the MatMul nodes
    that were left unquantized. int8: of those that have 8 bits in a graph of int4. bits: of a MatMul's weight, scales counted,
    the mean; 0 = not stated.
    """

    file: str
    data_file: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    atol: float
    precision: str = "fp32"
    block: int = 0
    excluded: tuple[str, ...] = ()
    int8: tuple[str, ...] = ()
    bits: float = 0.0


@dataclass(frozen=True)
class ModelInfo:
    """Where the weights came from and the sizes the runtime needs.

    max_positions: prompt and answer tokens together. rotary_axes: of a token's position, 1, or 3 (time, row, column).
    license: as the checkpoint states it, "" = it does not.
    """

    family: str
    weights_sha256: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    rotary_axes: int
    license: str


@dataclass(frozen=True)
class EmbeddingSpec:
    """How embedding.safetensors stores its rows. block: values that share a scale, 0 in fp32 and fp16.

    fp32, fp16: "weight" [V, D]. int8: "weight" int8 [V, D], "scales" fp16 [V, D / block]. int4: "weight" uint8 [V, D / 2] with
    the even column in the low nibble, its value nibble - 8, and "scales" as int8 has. A row is value * scale in float32.
    """

    precision: str
    block: int


@dataclass(frozen=True)
class Generation:
    """Defaults of decoding. max_new_tokens: of an answer, by capability."""

    max_new_tokens: dict[str, int]
    end_of_turn_id: int


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """prompts: one question template per capability, in order. variables: their default values. cameras: () = as given.

    precision: a label for people; each graph and the embedding state their own. dialects: of the decoders it has, best first.
    source: where the weights came from: "kind" (run, lora or checkpoint) and, of a run, "training_sha256" of its config. note:
    what whoever reads the answers must know, "" = nothing. graphs: "vision", "decoder.<dialect>". preprocessing:
    drivekd.images.PREPROCESSING_VERSION of training and export. coordinates: how the training's records write tags,
    "normalized", "pixel" or "none" (they have none); "" = not known. structured_instruction: text that training put behind a
    question whose answer shall be JSON, "" = none. data: sha256 of the files that training learnt from, {} = not known.
    accuracy: rows of a quantized bundle's table on the evaluation set, beside the checkpoint. language: perplexity and agreement
    of a quantized bundle beside its fp32 graphs.
    """

    format_version: int
    drivekd_version: str
    precision: str
    dialects: tuple[str, ...]
    model: ModelInfo
    source: dict[str, str]
    preprocessing: int
    images: ImageSettings | TiledSettings | PatchSettings
    chat: ChatFormat
    prompts: dict[str, str]
    variables: dict[str, Variable]
    cameras: tuple[str, ...]
    note: str
    coordinates: str
    structured_instruction: str
    data: dict[str, str]
    generation: Generation
    graphs: dict[str, GraphSpec]
    embedding: EmbeddingSpec
    parity: tuple[dict[str, str | int | float | bool], ...]
    accuracy: tuple[dict[str, str | int | float | bool], ...]
    files: dict[str, FileEntry]
    language: tuple[dict[str, str | int | float | bool], ...] = ()

    def to_bytes(self) -> bytes:
        """The bytes of manifest.json."""
        return (json.dumps(json_from_dataclass(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def manifest_from_bytes(data: bytes, source: str) -> Manifest:
    """Read manifest.json. Raises BundleError: not JSON, another format version, a missing or wrong entry."""
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:  # a plain ValueError: a number of more than 4,300 digits
        raise BundleError(f"{source}: {MANIFEST_FILE} is not valid JSON ({error})") from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{source}: bundle format {version!r}; this drivekd reads format {FORMAT_VERSION}. "
            "Export the checkpoint again with this version, or install the version that made the bundle."
        )
    try:
        manifest = dataclass_from_json(Manifest, value, MANIFEST_FILE)
    except TypedJsonError as error:
        raise BundleError(f"{source}: {error}") from error
    if manifest.preprocessing != PREPROCESSING_VERSION:
        raise BundleError(
            f"{source}: {MANIFEST_FILE} says preprocessing {manifest.preprocessing}; this drivekd makes pixels by version "
            f"{PREPROCESSING_VERSION}, which the model was not trained on. Use the drivekd that made the bundle, or train anew."
        )
    return manifest
