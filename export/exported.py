"""What an export knows of its checkpoint once the model is gone, and the manifest that says it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivekd import __version__
from drivekd.contract import Contract
from drivekd.files import file_digest
from drivekd.images import PREPROCESSING_VERSION
from drivekd.processor import Processor
from drivekd.runtime.bundle.manifest import (
    DIGEST_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    EmbeddingSpec,
    FileEntry,
    Generation,
    GraphSpec,
    Manifest,
    ModelInfo,
)
from drivekd.runtime.bundle.reader import digest_line

from .source.prompts import PromptSet
from .source.reference import Reference


@dataclass(frozen=True)
class Exported:
    """A checkpoint without its model: what the bundle says of it, and the truth to compare with. contract: training's, None where
    nothing says. embedding: [V, D]."""

    processor: Processor
    prompts: PromptSet
    contract: Contract | None
    info: ModelInfo
    origin: dict[str, str]
    graphs: dict[str, GraphSpec]
    embedding: NDArray[np.float32]
    embedding_spec: EmbeddingSpec
    reference: Reference
    layers: bytes


def manifest_of(exported: Exported, precision: str) -> Manifest:
    """All but tables and files."""
    processor, prompts, contract = exported.processor, exported.prompts, exported.contract
    return Manifest(
        format_version=FORMAT_VERSION,
        drivekd_version=__version__,
        precision=precision,
        dialects=tuple(name.removeprefix("decoder.") for name in exported.graphs if name != "vision"),
        model=exported.info,
        source=exported.origin,
        images=processor.images,
        chat=processor.chat,
        prompts=prompts.prompts,
        variables=prompts.variables,
        cameras=prompts.cameras,
        note=prompts.note,
        coordinates="" if contract is None else contract.coordinates,
        structured_instruction="" if contract is None else contract.structured_instruction,
        data={} if contract is None else contract.data,
        preprocessing=PREPROCESSING_VERSION,
        generation=Generation(prompts.budgets(), processor.prompts.end_of_turn_id),
        graphs=exported.graphs,
        embedding=exported.embedding_spec,
        parity=(),
        accuracy=(),
        files={},
    )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """manifest.json and bundle.sha256 over every other file of a folder that is a bundle from now on."""
    others = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (MANIFEST_FILE, DIGEST_FILE))
    files = {path.name: FileEntry(file_digest(path), path.stat().st_size) for path in others}
    data = dataclasses.replace(manifest, files=files).to_bytes()
    (folder / MANIFEST_FILE).write_bytes(data)
    (folder / DIGEST_FILE).write_bytes(digest_line(hashlib.sha256(data).hexdigest()))
