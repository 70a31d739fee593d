"""What manifest.json says: the one schema that the exporter writes and the runtime reads.

bundle/
  manifest.json          this file's Manifest; no timestamps, so equal checkpoints give equal bundles
  bundle.sha256          sha256 of manifest.json's raw bytes
  vision.onnx            pixel_values -> image_embeds
  decoder.concat.onnx    inputs_embeds + past -> logits + present ("concat": K/V grow by concatenation)
  *.onnx.data            weights of a graph larger than protobuf's 2 GB
  embedding.safetensors  "weight" [V, D], gathered on the host
  tokenizer.json
  golden.npz             inputs and this bundle's own ORT-CPU outputs at export
  engines/               engines built on their target; outside this digest, each with its own
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from drivekd.chat import ChatFormat
from drivekd.errors import BundleError
from drivekd.images import ImageSettings

from .typed_json import TypedJsonError, dataclass_from_json, json_from_dataclass

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
DIGEST_FILE = "bundle.sha256"
ENGINES_DIR = "engines"

Variable: TypeAlias = str | int | float


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. dims: numbers are fixed, names are free; equal names are equal sizes."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph. data_file: where its weights lie when they are not inside `file`. atol: of its parity check."""

    file: str
    data_file: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    atol: float


@dataclass(frozen=True)
class ModelInfo:
    """Where the weights came from and the sizes the runtime needs. max_positions: prompt and answer tokens together."""

    family: str
    weights_sha256: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int


@dataclass(frozen=True)
class Generation:
    """Defaults of decoding. max_new_tokens: per capability."""

    max_new_tokens: int
    end_of_turn_id: int


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """prompts: one question template per capability, in order. variables: their default values. cameras: () = as given.

    note: what whoever reads the answers must know, "" = nothing.
    """

    format_version: int
    drivekd_version: str
    precision: str
    dialect: str
    model: ModelInfo
    images: ImageSettings
    chat: ChatFormat
    prompts: dict[str, str]
    variables: dict[str, Variable]
    cameras: tuple[str, ...]
    note: str
    generation: Generation
    graphs: dict[str, GraphSpec]
    parity: tuple[dict[str, str | int | float | bool], ...]
    files: dict[str, FileEntry]

    def to_bytes(self) -> bytes:
        """The bytes of manifest.json."""
        return (json.dumps(json_from_dataclass(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def manifest_from_bytes(data: bytes, source: str) -> Manifest:
    """Read manifest.json. Raises BundleError: not JSON, another format version, a missing or wrong entry."""
    try:
        value: Any = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{source}: {MANIFEST_FILE} is not valid JSON ({error})") from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{source}: bundle format {version!r}; this drivekd reads format {FORMAT_VERSION}. "
            "Export the checkpoint again with this version, or install the version that made the bundle."
        )
    try:
        return dataclass_from_json(Manifest, value, MANIFEST_FILE)
    except TypedJsonError as error:
        raise BundleError(f"{source}: {error}") from error
