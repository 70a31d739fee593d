"""All graphs of a checkpoint: torch modules, one a tower and one for the language model, lowered and written in fp32.

    vision.onnx            InternVLVision or QwenVision
    decoder.<dialect>.onnx DecoderGraph; weights in decoder.data, once for all dialects

Every MatMul of a weight is called after it (layers.0.mlp.up_proj, lm_head, vision.layers.0.attention.q_proj) and takes it from an
initializer [in, out]. Hidden states behind layers are the values layers.N.output and vision.layers.N.output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import onnx_ir as ir
from torch import nn
from transformers import InternVLForConditionalGeneration, PreTrainedModel

from drivekd.errors import UsageError
from drivekd.export.lowering.concat import LOWER_TO_CONCAT
from drivekd.export.lowering.gqa import LOWER_TO_GQA
from drivekd.export.lowering.norms import norms_to_standard
from drivekd.export.lowering.packing import pack_projections
from drivekd.export.lowering.passes import Pass, copy_of, run_passes, squeeze_before_product
from drivekd.export.source.source import Source
from drivekd.images import ImageForm, PatchSettings
from drivekd.runtime.bundle.manifest import DIALECTS, GraphSpec

from .decoder import DecoderGraph, causal_mask
from .from_torch import finished, graph_from_module
from .internvl import InternVLVision, export_attention
from .qwen2_5_vl import QwenVision
from .shared_weights import write_models
from .specs import decoder_spec, vision_spec

__all__ = ["DecoderGraph", "causal_mask", "write_graphs"]

# Larger weights lie beside their graph: protobuf ends at 2 GB, and parsing it keeps two copies of what is inside.
INLINE_LIMIT_BYTES = 64_000_000
LOWERINGS: dict[str, Sequence[Pass]] = {"gqa": LOWER_TO_GQA, "concat": LOWER_TO_CONCAT}


def write_graphs(source: Source, folder: Path, dialects: Sequence[str] = DIALECTS) -> dict[str, GraphSpec]:
    """Write vision.onnx and a decoder for each dialect into `folder`; returns specs under "vision" and "decoder.<dialect>".

    Raises UsageError for an unknown dialect, ExportError when torch cannot make a graph, OSError when a file cannot be written.
    """
    if unknown := [name for name in dialects if name not in LOWERINGS]:
        raise UsageError(f"dialect {unknown[0]!r} is unknown; this version has: {', '.join(LOWERINGS)}")
    with _evaluating(source.model):
        return {"vision": _write_vision(source, folder), **_write_decoders(source, folder, dialects)}


def _write_vision(source: Source, folder: Path) -> GraphSpec:
    spec = vision_spec(source.info, source.images, source.processor.chat.tokens_per_image)
    model = vision_graph(source.model, source.images, spec)
    if _weight_bytes(model) <= INLINE_LIMIT_BYTES:
        ir.save(model, folder / spec.file)
        return spec
    write_models({spec.file: model}, folder, "vision.data")
    return dataclasses.replace(spec, data_file="vision.data")


def _write_decoders(source: Source, folder: Path, dialects: Sequence[str]) -> dict[str, GraphSpec]:
    graphs = decoder_graphs(source, dialects)
    specs = {dialect: decoder_spec(source.info, dialect) for dialect in dialects}
    if len(dialects) == 1 and all(_weight_bytes(model) <= INLINE_LIMIT_BYTES for model in graphs.values()):
        for dialect, model in graphs.items():
            ir.save(model, folder / specs[dialect].file)
        return {f"decoder.{dialect}": spec for dialect, spec in specs.items()}
    write_models({specs[dialect].file: model for dialect, model in graphs.items()}, folder, "decoder.data")
    return {f"decoder.{dialect}": dataclasses.replace(spec, data_file="decoder.data") for dialect, spec in specs.items()}


def vision_graph(model: PreTrainedModel, images: ImageForm, spec: GraphSpec) -> ir.Model:
    """The vision tower with its projector; weights are views of the model's."""
    if isinstance(images, PatchSettings):
        module: nn.Module = QwenVision(model, images)
    else:
        module = InternVLVision(model)
    with export_attention(model) if isinstance(model, InternVLForConditionalGeneration) else nullcontext():
        graph = graph_from_module(module, spec)
    return finished(graph, spec, [norms_to_standard])


def decoder_graphs(source: Source, dialects: Sequence[str]) -> dict[str, ir.Model]:
    """The language model in each dialect, from one export; weights are views of the model's, shared by the dialects."""
    graph = graph_from_module(DecoderGraph(source.model), decoder_spec(source.info, "concat"))
    graph = run_passes(graph, [pack_projections, squeeze_before_product], "decoder")
    return {dialect: finished(copy_of(graph), decoder_spec(source.info, dialect), LOWERINGS[dialect]) for dialect in dialects}


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
