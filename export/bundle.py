"""A checkpoint becomes a bundle: export, build, infer, compare, and only then write; it arrives whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch

from drivekd import __version__
from drivekd.digests import file_digest
from drivekd.errors import ExportError, UsageError
from drivekd.run_directory import whole_directory
from drivekd.runtime.bundle import Bundle, digest_line
from drivekd.runtime.check import check_bundle
from drivekd.runtime.golden import GOLDEN_FILE, record_golden
from drivekd.runtime.manifest import DIGEST_FILE, FORMAT_VERSION, MANIFEST_FILE, FileEntry, Generation, GraphSpec, Manifest
from drivekd.runtime.session import Session

from .graphs import DecoderGraph, VisionGraph, export_attention
from .measure import measure_parity
from .onnx_graph import onnx_from_module
from .parity import ParityTable
from .source import Source, load_source
from .specs import decoder_spec, vision_spec

PRECISIONS = ("fp32",)
DIALECT = "concat"
HEADROOM = 1.05  # of the weights' bytes, for what is not weights

OnParity = Callable[[ParityTable], None]


def bundle_from_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    precision: str = "fp32",
    prompts: Mapping[str, str] | None = None,
    on_parity: OnParity | None = None,
) -> ParityTable:
    """Export a checkpoint directory (Hugging Face layout) as the bundle directory `out`.

    prompts: one question template per capability, None = those of the checkpoint. on_parity: gets the parity table before it
    is judged, so that it can be shown when it fails.
    Raises UsageError (`out` is not empty, unknown precision, a wrong prompt), CheckpointError (missing file, other family, NaN
    weights), ExportError (no graph, parity failed, no disk space). Whatever it raises, nothing is left behind.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    _check_request(out, precision)
    source = load_source(checkpoint, prompts)
    with whole_directory(out, needed_bytes=_needed_bytes(source), error_type=ExportError) as staging:
        graphs = _write_graphs(source, staging)
        _write_embedding(source, staging)
        (staging / "tokenizer.json").write_text(source.processor.tokenizer.to_str(), encoding="utf-8")
        with Session(_staged_bundle(source, graphs, staging, precision)) as session:
            table = measure_parity(source.model, session)
            if on_parity is not None:
                on_parity(table)
            _check_parity(checkpoint, table)
            (staging / GOLDEN_FILE).write_bytes(record_golden(session))
        manifest = dataclasses.replace(
            _manifest(source, graphs, precision), parity=tuple(table.to_json()), files=_file_entries(staging)
        )
        _write_manifest(manifest, staging)
        check_bundle(staging)
    return table


def _check_request(out: Path, precision: str) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not available; this version exports {', '.join(PRECISIONS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty directory; name another --out or remove it")


def _needed_bytes(source: Source) -> int:
    weights = sum(parameter.nbytes for parameter in source.model.parameters())
    embedding = source.model.get_input_embeddings().weight.nbytes  # once in the decoder as lm_head, once for the host
    return int((weights + embedding) * HEADROOM)


def _write_graphs(source: Source, staging: Path) -> dict[str, GraphSpec]:
    images, chat = source.images, source.processor.chat
    with export_attention(source.model):
        vision = vision_spec(source.info, images, chat.tokens_per_image)
        return {
            "vision": onnx_from_module(VisionGraph(source.model), vision, staging),
            "decoder": onnx_from_module(DecoderGraph(source.model), decoder_spec(source.info), staging),
        }


def _write_embedding(source: Source, staging: Path) -> None:
    weight = source.model.get_input_embeddings().weight.detach().contiguous()
    (staging / "embedding.safetensors").write_bytes(safetensors.torch.save({"weight": weight}))


def _manifest(source: Source, graphs: dict[str, GraphSpec], precision: str) -> Manifest:
    """All but the parity table and the files."""
    processor, prompts = source.processor, source.prompts
    return Manifest(
        format_version=FORMAT_VERSION,
        drivekd_version=__version__,
        precision=precision,
        dialect=DIALECT,
        model=source.info,
        images=source.images,
        chat=processor.chat,
        prompts=prompts.prompts,
        variables=prompts.variables,
        cameras=prompts.cameras,
        note=prompts.note,
        generation=Generation(prompts.max_new_tokens, processor.prompts.end_of_turn_id),
        graphs=graphs,
        parity=(),
        files={},
    )


def _staged_bundle(source: Source, graphs: dict[str, GraphSpec], staging: Path, precision: str) -> Bundle:
    """What is written so far as the runtime will see it."""
    files = {path.name: path.read_bytes() for path in staging.iterdir()}
    return Bundle(staging, "", _manifest(source, graphs, precision), files)


def _check_parity(checkpoint: Path, table: ParityTable) -> None:
    if not table.passed:
        worst = table.rows[0]
        failed = sum(not row.passed for row in table.rows)
        agreement = "" if worst.argmax_agreement is None else f", {worst.argmax_agreement:.1%} of the tokens agree"
        raise ExportError(
            f"{checkpoint}: parity failed in {failed} of {len(table.rows)} outputs, no bundle was written. Worst: {worst.graph}, "
            f"{worst.case}, {worst.output}: error {worst.max_abs:.2e}, limit {worst.limit:.2e}{agreement}"
        )


def _file_entries(staging: Path) -> dict[str, FileEntry]:
    entries = {}
    for path in sorted(staging.iterdir()):
        entries[path.name] = FileEntry(file_digest(path), path.stat().st_size)
    return entries


def _write_manifest(manifest: Manifest, staging: Path) -> None:
    data = manifest.to_bytes()
    (staging / MANIFEST_FILE).write_bytes(data)
    (staging / DIGEST_FILE).write_bytes(digest_line(hashlib.sha256(data).hexdigest()))
