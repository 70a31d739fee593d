"""Tiny lively models of both families and their fp32 bundles with both dialects, made once for all test files that want them."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import safetensors.numpy
import torch
from conftest import CORPUS, SIZE
from transformers import PreTrainedModel

from drivekd.export.graphs import write_graphs
from drivekd.export.source import Source, load_source
from drivekd.models.tiny import (
    QWEN_SPECIAL_TOKENS,
    SPECIAL_TOKENS,
    build_tiny,
    build_tiny_qwen,
    train_tokenizer,
    write_checkpoint,
)
from drivekd.runtime.bundle import Bundle
from drivekd.runtime.manifest import DIALECTS, FORMAT_VERSION, EmbeddingSpec, Generation, GraphSpec, Manifest

FAMILIES = ("internvl", "qwen2_5_vl")


@dataclasses.dataclass(frozen=True)
class Exported:
    """A lively tiny model (see conftest.lively_checkpoint) and its fp32 bundle with both dialects."""

    source: Source
    bundle: Bundle

    @property
    def model(self) -> PreTrainedModel:
        return self.source.model


@cache
def exported_family(root: Path, family: str) -> Exported:
    """Made once under a test run's folder; tests only read it."""
    folder = root / f"dialects-{family}"
    source = load_source(lively_checkpoint(folder / "checkpoint", family), None)
    (folder / "bundle").mkdir()
    graphs = write_graphs(source, folder / "bundle", DIALECTS)
    weight = source.model.get_input_embeddings().weight.detach().numpy().copy()
    (folder / "bundle" / "embedding.safetensors").write_bytes(safetensors.numpy.save({"weight": weight}))
    (folder / "bundle" / "tokenizer.json").write_text(source.processor.tokenizer.to_str())
    return Exported(source, bundle_of(source, graphs, folder / "bundle"))


def lively_checkpoint(folder: Path, family: str) -> Path:
    qwen = family == "qwen2_5_vl"
    tokenizer = train_tokenizer(CORPUS, ["CAM_FRONT"], 400, special_tokens=QWEN_SPECIAL_TOKENS if qwen else SPECIAL_TOKENS)
    wide = dataclasses.replace(SIZE, language_width=64)  # heads of 16, which onnxruntime's operator wants
    model = (build_tiny_qwen if qwen else build_tiny)(wide, tokenizer, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda" in name:
                parameter.fill_(1.0)
            elif parameter.ndim >= 2 and "embed_tokens" not in name:
                parameter.mul_(6.0)
    write_checkpoint(folder, model, tokenizer, camera_size_px=(84, 56) if qwen else None)
    return folder


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
        generation=Generation(prompts.max_new_tokens, source.processor.prompts.end_of_turn_id),
        graphs=graphs,
        embedding=EmbeddingSpec("fp32", 0),
        parity=(),
        accuracy=(),
        files={},
    )
    return Bundle(folder, "", manifest, {path.name: path.read_bytes() for path in folder.iterdir()})
