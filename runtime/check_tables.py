"""What `drivekd check` prints about a bundle that passed: one table, and with --verbose all that its manifest says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from .bundle.manifest import EmbeddingSpec, GraphSpec, Manifest, TensorSpec
from .bundle.signature import SignatureState
from .check import UNUSABLE, CheckReport

Value: TypeAlias = str | int | float | bool
Table: TypeAlias = tuple[str, list[str], list[list[str]]]  # title, header, rows

KV_TENSOR = re.compile(r"(past_key_values|present)\.\d+\.(key|value)")
DTYPE_BYTES = {"float32": 4, "float16": 2}
SHOWN_DIGITS = 16  # of a sha256; `manifest.json` has the rest
SHOWN_NAMES = 6  # of unquantized MatMuls; `manifest.json` has all
GRAPH_HEADER = ["graph", "precision", "block", "bits a weight", "in 8 bits", "weights in", "opset", "left unquantized"]
SIGNATURES: dict[SignatureState, str] = {
    "unsigned": "none: the digests exclude accidents, not malice (drivekd export BUNDLE --sign KEY.pem)",
    "unchecked": "bundle.sig is there and was NOT checked: give --public-key PEM",
    "verified": "valid under the given public key",
}


def check_tables(report: CheckReport, *, verbose: bool) -> list[Table]:
    """Tables of a passed check, the summary first."""
    manifest = report.manifest
    summary = [*_summary_rows(report), *([*_speed_rows(report), *_origin_rows(manifest)] if verbose else [])]
    tables: list[Table] = [(f"{report.path} is sound", ["", ""], summary)]
    if not verbose:
        return tables
    tables.append(
        (
            "graphs",
            ["graph", "precision", "block", "bits a weight", "in 8 bits", "weights in", "opset", "left unquantized"],
            _graph_rows(report),
        )
    )
    for name, graph in manifest.graphs.items():
        tables.append((f"{name}: inputs and outputs", ["", "tensor", "type", "shape"], tensor_rows(graph)))
    tables.append(("files", ["file", "bytes", "sha256"], _file_rows(manifest)))
    if manifest.language:
        tables.append(("what quantization costs in words", *accuracy_table(manifest.language)))
    if manifest.accuracy:
        tables.append(("accuracy on the evaluation set", *accuracy_table(manifest.accuracy)))
    tables.append(("engines", ["target", ""], [list(row) for row in report.engines] or [["none", "drivekd export BUNDLE --trt"]]))
    tables.append(("prompts", ["capability", "question"], [list(item) for item in manifest.prompts.items()]))
    return tables


def _summary_rows(report: CheckReport) -> list[list[str]]:
    manifest = report.manifest
    model = (
        f"{manifest.model.family}, {manifest.model.num_layers} layers, {manifest.precision}, {' and '.join(manifest.dialects)}"
    )
    rows = [
        ["bundle", report.bundle],
        ["files", f"{report.num_files}, {report.num_bytes / 1e6:.1f} MB, every digest right"],
        ["signature", SIGNATURES[report.signature]],
        ["model", model],
    ]
    if manifest.note:
        rows.append(["note", manifest.note])
    if report.replay is not None:
        replay = report.replay
        tokens = f"{replay.tokens_agreeing} of {replay.tokens_compared} tokens agree"
        rows.append(["parity gate", f"passed on {report.backend}: vision cosine {replay.vision_cosine:.6f}, {tokens}"])
    return [*rows, *(["engines", f"{target} {state}"] for target, state in report.engines if state.startswith(UNUSABLE))]


def _speed_rows(report: CheckReport) -> list[list[str]]:
    """Taken while the gate was replayed: a bundle's own numbers would be another machine's."""
    replay = report.replay
    if replay is None or not replay.step_ms:
        return []
    speed = f"{replay.step_ms:.1f} ms a step of {replay.rows} rows, {1000 * replay.rows / replay.step_ms:,.0f} tokens/s"
    return [["decoding, here", speed]]


def _origin_rows(manifest: Manifest) -> list[list[str]]:
    source = manifest.source
    rows = [
        ["made by", f"drivekd {manifest.drivekd_version} from a {source.get('kind', 'source that it does not name')}"],
        ["weights", f"sha256 {manifest.model.weights_sha256}"],
    ]
    if training := source.get("training_sha256"):
        rows.append(["training", f"config sha256 {training}"])
    return [
        *rows,
        *_promise_rows(manifest),
        ["licence", manifest.model.license or "not stated by the checkpoint"],
        ["parity at export", parity_summary(manifest)],
        ["memory", f"{kv_bytes_per_1k_tokens(manifest) / 1e6:.2f} MB of K/V per 1,000 tokens and row"],
        ["embedding", embedding_summary(manifest.embedding, manifest.model.vocab_size, manifest.model.hidden_size)],
    ]


def _promise_rows(manifest: Manifest) -> list[list[str]]:
    """What training told the car."""
    budgets = ", ".join(f"{name} {tokens}" for name, tokens in manifest.generation.max_new_tokens.items())
    rows = [
        ["cameras", ", ".join(manifest.cameras) or "not stated: pictures come as they are given"],
        ["answers", f"of {budgets} tokens at most"],
    ]
    if manifest.coordinates:
        rows.append(["object tags", manifest.coordinates])
    return [*rows, *([f"records {name}", f"sha256 {digest}"] for name, digest in manifest.data.items())]


def parity_summary(manifest: Manifest) -> str:
    """How many rows of the parity table passed, and the worst."""
    if not manifest.parity:
        return "no table"
    worst, passed = manifest.parity[0], sum(row.get("passed") is True for row in manifest.parity)
    place = ", ".join(str(worst[key]) for key in ("graph", "case", "output") if key in worst)
    sizes = [f"{words} {worst[key]:.1e}" for key, words in (("max_abs", "error"), ("limit", "limit")) if key in worst]
    return f"{passed} of {len(manifest.parity)} rows passed; worst: {place}: {', '.join(sizes)}"


def kv_bytes_per_1k_tokens(manifest: Manifest) -> int:
    """2 (K and V) x layers x K/V heads x head dim x bytes of a value x 1,000, of one row."""
    model, graph = manifest.model, manifest.graphs[f"decoder.{manifest.dialects[0]}"]
    dtype = next(tensor.dtype for tensor in graph.inputs if KV_TENSOR.fullmatch(tensor.name))
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * DTYPE_BYTES[dtype] * 1000


def embedding_summary(spec: EmbeddingSpec, vocab_size: int, hidden_size: int) -> str:
    """Size and precision of the table that the host gathers from."""
    blocks = f", blocks of {spec.block}" if spec.block else ""
    return f"{vocab_size:,} x {hidden_size:,}, {spec.precision}{blocks}"


def _graph_rows(report: CheckReport) -> list[list[str]]:
    rows = []
    for name, graph in report.manifest.graphs.items():
        block = str(graph.block) if graph.block else ""
        weights = graph.data_file or "the graph"
        bits = f"{graph.bits:.3g}" if graph.bits else ""
        names = _shown_names(graph.int8), _shown_names(graph.excluded)
        rows.append([name, graph.precision, block, bits, names[0], weights, report.opsets.get(name, ""), names[1]])
    return rows


def _shown_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def tensor_rows(graph: GraphSpec) -> list[list[str]]:
    """Direction, name, type and shape; K and V of all layers share a row."""
    rows: dict[tuple[str, str, str, str], None] = {}
    for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        layers = sum(bool(KV_TENSOR.fullmatch(tensor.name)) for tensor in tensors) // 2
        for tensor in tensors:
            rows[(direction, _shown_name(tensor, layers), tensor.dtype, f"[{', '.join(map(str, tensor.dims))}]")] = None
    return [list(row) for row in rows]


def _shown_name(tensor: TensorSpec, layers: int) -> str:
    found = KV_TENSOR.fullmatch(tensor.name)
    return tensor.name if found is None else f"{found[1]}.0 to {layers - 1}.key and .value"


def _file_rows(manifest: Manifest) -> list[list[str]]:
    return [[name, f"{entry.bytes:,}", entry.sha256[:SHOWN_DIGITS]] for name, entry in manifest.files.items()]


def accuracy_table(rows: Sequence[Mapping[str, Value]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; a value with its `_lower` and `_upper` shares a cell with them."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown = [key for key in keys if not (key.endswith(("_lower", "_upper")) and key[:-6] in keys)]
    header = [key.replace("_", " ") + (" [95 %]" if f"{key}_lower" in keys else "") for key in shown]
    return header, [[_number_cell(row, key) for key in shown] for row in rows]


def _number_cell(row: Mapping[str, Value], key: str) -> str:
    lower, upper = row.get(f"{key}_lower"), row.get(f"{key}_upper")
    interval = "" if lower is None or upper is None else f" [{_cell(lower)}, {_cell(upper)}]"
    return _cell(row.get(key, "")) + interval


def _cell(value: Value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
