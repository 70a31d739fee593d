"""Tiny lively models of both families and their fp32 bundles with both dialects, made once for all test files that want them."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import safetensors.numpy
from lively_model import SIZE, lively_checkpoint
from transformers import PreTrainedModel

from drivekd.export.graphs.graphs import write_graphs
from drivekd.export.source.source import Source, load_source
from drivekd.images import PREPROCESSING_VERSION
from drivekd.runtime.bundle.manifest import DIALECTS, FORMAT_VERSION, EmbeddingSpec, Generation, GraphSpec, Manifest
from drivekd.runtime.bundle.reader import Bundle

WIDE = dataclasses.replace(SIZE, language_width=64)  # heads of 16, which onnxruntime's operator wants


@dataclasses.dataclass(frozen=True)
class Exported:
    """A lively tiny model (see lively_model) and its fp32 bundle with both dialects."""

    source: Source
    bundle: Bundle

    @property
    def model(self) -> PreTrainedModel:
        return self.source.model


@cache
def exported_family(root: Path, family: str) -> Exported:
    """Made once under a test run's folder; tests only read it."""
    folder = root / f"dialects-{family}"
    source = load_source(lively_checkpoint(folder / "checkpoint", family, WIDE), None)
    (folder / "bundle").mkdir()
    graphs = write_graphs(source, folder / "bundle", DIALECTS)
    weight = source.model.get_input_embeddings().weight.detach().numpy().copy()
    (folder / "bundle" / "embedding.safetensors").write_bytes(safetensors.numpy.save({"weight": weight}))
    (folder / "bundle" / "tokenizer.json").write_text(source.processor.tokenizer.to_str(), encoding="utf-8")
    return Exported(source, bundle_of(source, graphs, folder / "bundle"))


def bundle_of(source: Source, graphs: dict[str, GraphSpec], folder: Path) -> Bundle:
    prompts = source.prompts
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        drivekd_version="0",
        precision="fp32",
        dialects=DIALECTS,
        model=source.info,
        source=source.origin,
        images=source.images,
        chat=source.processor.chat,
        prompts=prompts.prompts,
        variables=prompts.variables,
        cameras=prompts.cameras,
        note="",
        preprocessing=PREPROCESSING_VERSION,
        coordinates="",
        structured_instruction="",
        data={},
        generation=Generation(prompts.budgets(), source.processor.prompts.end_of_turn_id),
        graphs=graphs,
        embedding=EmbeddingSpec("fp32", 0),
        parity=(),
        accuracy=(),
        files={},
    )
    return Bundle(folder, "", manifest, {path.name: path.read_bytes() for path in folder.iterdir()})
