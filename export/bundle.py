"""A checkpoint becomes a bundle: export, compare, quantize, compare again; it arrives whole or not at all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy

from drivekd.data.traces import read_traces
from drivekd.errors import BundleError, DataError, ExportError, UsageError
from drivekd.files import TRACES_FILE, whole_directory
from drivekd.hf_checkpoint import Checkpoint
from drivekd.log import logger
from drivekd.processor import Processor
from drivekd.quantization.form import Quantized
from drivekd.quantization.linears import linear_layers
from drivekd.quantization.scales import SCALES_FILE
from drivekd.runtime.answers.questions import fill_template
from drivekd.runtime.answers.schemas import SCHEMAS_FILE, default_schemas, schemas_from_bytes, schemas_to_bytes
from drivekd.runtime.bundle.manifest import EmbeddingSpec, GraphSpec
from drivekd.runtime.bundle.reader import Bundle, read_bundle
from drivekd.runtime.check import check_bundle
from drivekd.runtime.parity.golden import GOLDEN_FILE, golden_images, record_golden
from drivekd.runtime.session.model import StartedModel

from .calibrated import carry_calibration
from .exported import Exported, manifest_of, write_manifest
from .graphs.graphs import write_graphs
from .graphs.shared_weights import share_weights
from .parity.accuracy import AccuracyRow, accuracy_rows, check_records
from .parity.language import Heard, LanguageRow, language_row, listen, own_answers, spoken_records
from .parity.measure import decoder_rows, measure_parity
from .parity.overflow import refuse_overflow
from .parity.table import ParityRow, ParityTable, parity_table
from .quantize.calibration import Calibrated, CameraSample, calibrate, camera_samples
from .quantize.convert import convert
from .quantize.embedding import embedding_spec, quantize_embedding
from .quantize.frames import Frames, read_frames
from .quantize.sensitivity import SensitivityReport, Trials, sensitivity
from .rounding import OnMix, check_names, mixed, rounded_weights
from .settings import ExportPlan
from .source.layer_recording import record_layers
from .source.layer_values import LAYERS_FILE, layer_values_from_bytes
from .source.prompts import PromptSet
from .source.reference import take_reference
from .source.repeatable import EXPORT_THREADS, repeatable
from .source.source import Source, load_source
from .trained import as_trained

HEADROOM = 1.05  # of the weights' bytes, for what is not weights
EMBEDDING_FILE = "embedding.safetensors"
DECODER_DATA = "decoder.data"
SENSITIVITY_SAMPLES = 2  # each is run once a row

OnParity = Callable[[ParityTable], None]
OnSensitivity = Callable[[SensitivityReport], None]


@dataclass(frozen=True)
class Watched:
    """What a caller wants to see while an export goes on."""

    on_parity: OnParity | None
    on_sensitivity: OnSensitivity | None
    on_mix: OnMix | None


@dataclass(frozen=True)
class ExportReport:
    """language: what rounding cost in words, of a quantized bundle. accuracy: without an evaluation set, nothing. trained: the
    weights have the scales that they were trained with."""

    parity: ParityTable
    language: tuple[LanguageRow, ...]
    accuracy: tuple[AccuracyRow, ...]
    trained: bool = False


def bundle_from_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    plan: ExportPlan | None = None,
    prompts: Mapping[str, str] | None = None,
    on_parity: OnParity | None = None,
    on_sensitivity: OnSensitivity | None = None,
    on_mix: OnMix | None = None,
) -> ExportReport:
    """Export a checkpoint, a run or an adapter (Hugging Face layout) as the bundle directory `out`.

    plan: None = fp32 in every dialect. prompts: one question template per capability, None = those of the checkpoint.
    on_parity: gets the parity table before it is judged, so that it can be shown when it fails. on_sensitivity: gets each
    quantized graph's report, when the plan's settings ask for it. on_mix: gets what has 8 bits in a decoder of int4, and why.
    Raises UsageError (`out` is not empty, a wrong prompt), CheckpointError (missing file, other family, NaN weights), ExportError
    (no graph, parity failed, values that float16 cannot hold, no disk space), DataError (calibration or evaluation records).
    Whatever it raises, nothing is left behind.

        >>> report = bundle_from_checkpoint(checkpoint, out)
        >>> report.parity.passed, report.parity.rows[0].precision
        (True, 'fp32')
        >>> read_bundle(out).manifest.dialects
        ('gqa', 'concat')
    """
    with repeatable():
        watched = Watched(on_parity, on_sensitivity, on_mix)
        return _bundle_from_checkpoint(Path(checkpoint), Path(out), plan or ExportPlan(), prompts, watched)


def _bundle_from_checkpoint(
    checkpoint: Path,
    out: Path,
    plan: ExportPlan,
    prompts: Mapping[str, str] | None,
    watched: Watched,
) -> ExportReport:
    _check_folders(out, plan.settings.rounded_checkpoint)
    logger.info("reading %s", checkpoint)
    source = load_source(checkpoint, prompts)
    opened = source.checkpoint
    scales_of = Path(checkpoint) if source.origin["kind"] == "lora" else opened.path  # an adapter's base has scales of its own
    plan, trained = as_trained(plan, scales_of, linear_layers(source.model))
    check_names(source, plan)
    samples, frames = _calibration(source.processor, plan)
    if plan.settings.mixes and frames is not None:
        plan = mixed(source, plan, frames, watched.on_mix)
    schemas = _schemas(source.prompts, plan.settings.schemas)
    if plan.settings.evaluation is not None:
        check_records(plan.settings.evaluation, source.prompts.cameras)
    with (
        whole_directory(out, needed_bytes=_needed_bytes(source, plan), error_type=ExportError) as staging,
        _beside(staging) as exact,
        _whole_or_gone(plan.settings.rounded_checkpoint),
    ):
        logger.info("asking the model, and writing its graphs in fp32: %s", ", ".join(plan.dialects))
        exported = _export(source, exact, plan.dialects, schemas)
        weights, rounded = rounded_weights(source, exported, plan, frames, trained) if plan.rounds_weights else ({}, exported)
        del source  # the model's memory is the sessions' now
        rows = _compared(exported, exact, "fp32")
        language: tuple[LanguageRow, ...] = ()
        if not plan.is_exact and rows.passed:
            converted = _convert(rounded, exact, staging, plan, weights, samples, watched.on_sensitivity)
            if plan.vision.half or plan.decoder.half:  # first: parity would only say that something is far off, if at all
                _refuse_overflow(converted, staging, plan)
            rows = parity_table([*rows.rows, *_compared(converted, staging, plan.label).rows])
        if watched.on_parity is not None:
            watched.on_parity(rows)
        _check_parity(checkpoint, rows)
        if plan.is_exact:
            converted = exported
            _move_files(exact, staging)
        elif plan.rounds_weights:
            language = _language(exported, exact, staging, frames)
        asked_rounded = (opened.path / SCALES_FILE).is_file()  # eval answers with the rounded weights then
        same_weights = bool(trained.scales) if plan.rounds_weights else not asked_rounded
        carry_calibration(opened.path, staging, same_weights=same_weights and converted.origin["kind"] != "lora")
        _finish(converted, staging, plan, rows, language)
        accuracy = _accuracy(opened, converted, staging if plan.is_exact else exact, staging, plan)
        check_bundle(staging)
        return ExportReport(rows, language, accuracy, bool(trained.scales))


def _check_folders(out: Path, rounded: Path | None) -> None:
    """Nothing is replaced, and neither folder is within the other."""
    for flag, folder in (("--out", out), ("rounded_checkpoint", rounded)):
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} exists and is not an empty directory; name another {flag} or remove it")
    if rounded is not None:
        one, other = out.resolve(), rounded.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise UsageError(f"rounded_checkpoint: {rounded} and --out {out} lie in one another; name folders side by side")


def _calibration(processor: Processor, plan: ExportPlan) -> tuple[list[CameraSample], Frames | None]:
    """What static ranges and sensitivity are found on, and what weights are rounded on. Read before anything slow begins: a wrong
    file is named at once."""
    settings = plan.settings
    if settings.calibration is None:
        return [], None
    frames = read_frames(settings.calibration, processor, count=settings.calibration_samples) if plan.rounds_weights else None
    ranged = plan.vision.int8_inputs or plan.decoder.int8_inputs or settings.sensitivity
    kept_back = frames.kept_back if frames is not None else frozenset()
    samples = camera_samples(settings.calibration, processor, but=kept_back) if ranged else []
    return samples, frames


def _schemas(prompts: PromptSet, file: Path | None) -> bytes:
    """schemas.json for the capabilities asked: of `file`, or drivekd's own. Raises DataError: no such file, no schemas."""
    if file is None:
        schemas = default_schemas(prompts.cameras)
        return schemas_to_bytes({name: schema for name, schema in schemas.items() if name in prompts.prompts})
    try:
        schemas = schemas_from_bytes(file.read_bytes(), str(file))
    except OSError as error:
        raise DataError(f"{file}: schemas cannot be read ({error.strerror})") from error
    except BundleError as error:
        raise DataError(str(error)) from error
    if unknown := [name for name in schemas if name not in prompts.prompts]:
        raise DataError(f"{file}: {unknown[0]!r} is no capability of this checkpoint; it has: {', '.join(prompts.prompts)}")
    return schemas_to_bytes(schemas)


@contextmanager
def _beside(staging: Path) -> Iterator[Path]:
    """A directory for the fp32 graphs, gone at the end; its name is one that whole_directory clears away after a kill."""
    folder = staging.with_name(staging.name.removesuffix(".tmp") + ".fp32.tmp")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _whole_or_gone(folder: Path | None) -> Iterator[None]:
    """What is written beside a bundle goes when the bundle fails."""
    arrived = False
    try:
        yield
        arrived = True
    finally:
        if folder is not None and not arrived:
            shutil.rmtree(folder, ignore_errors=True)


def _needed_bytes(source: Source, plan: ExportPlan) -> int:
    """The fp32 graphs, and beside them what they are converted to: at most as much again."""
    weights = sum(parameter.nbytes for parameter in source.model.parameters())
    embedding = source.model.get_input_embeddings().weight.nbytes  # once in the decoder as lm_head, once for the host
    return int((weights + embedding) * HEADROOM * (1 if plan.is_exact else 2))


def _export(source: Source, folder: Path, dialects: tuple[str, ...], schemas: bytes) -> Exported:
    """The graphs in fp32, and everything else that needs the model. schemas: the bytes of schemas.json."""
    questions = [fill_template(text, source.prompts.variables) for text in source.prompts.prompts.values()]
    images = list(golden_images(source.processor.images.tiles_px).values())
    weight = source.model.get_input_embeddings().weight.detach().contiguous().numpy()
    (folder / EMBEDDING_FILE).write_bytes(safetensors.numpy.save({"weight": weight}))
    (folder / "tokenizer.json").write_text(source.processor.tokenizer.to_str(), encoding="utf-8")
    (folder / SCHEMAS_FILE).write_bytes(schemas)
    if source.traces is not None:
        read_traces(source.traces)  # what is damaged is named here, not when somebody asks
        shutil.copyfile(source.traces, folder / TRACES_FILE)
    return Exported(
        processor=source.processor,
        prompts=source.prompts,
        contract=source.contract,
        info=source.info,
        origin=source.origin,
        reference=take_reference(source.model, source.processor, images, questions),
        layers=record_layers(source.model, source.processor, images[0], questions[0]),
        graphs=write_graphs(source, folder, dialects),
        embedding=weight,
        embedding_spec=EmbeddingSpec("fp32", 0),
    )


def _convert(
    exported: Exported,
    exact: Path,
    staging: Path,
    plan: ExportPlan,
    weights: Mapping[str, Quantized],
    samples: Sequence[CameraSample],
    on_sensitivity: OnSensitivity | None,
) -> Exported:
    """Every file of the bundle in the plan's precision. weights: rounded ones, by MatMul. samples: to calibrate on."""
    plans = {name: plan.vision if name == "vision" else plan.decoder for name in exported.graphs}
    logger.info("converting to %s", plan.label)
    calibrated = calibrate(samples, exported.embedding, exported.graphs, exact) if samples else Calibrated({}, {})
    if plan.settings.sensitivity and on_sensitivity is not None:
        for name, feeds in calibrated.feeds.items():
            if plans[name].precision in ("int8", "int4"):
                judged = Trials(
                    exported.graphs[name], exact, plans[name], feeds[:SENSITIVITY_SAMPLES], weights, calibrated.ranges[name]
                )
                on_sensitivity(sensitivity(name, judged))
    graphs = {
        name: convert(spec, exact, staging, plans[name], weights, calibrated.ranges.get(name))
        for name, spec in exported.graphs.items()
    }
    graphs |= _shared(staging, {name: spec for name, spec in graphs.items() if name != "vision"})
    spec = embedding_spec(plan.embedding, exported.info.hidden_size, plan.decoder.block)
    table = quantize_embedding(exported.embedding, spec.precision, spec.block)
    (staging / EMBEDDING_FILE).write_bytes(safetensors.numpy.save(table))
    for name in ("tokenizer.json", SCHEMAS_FILE, TRACES_FILE):
        if (exact / name).is_file():
            shutil.copyfile(exact / name, staging / name)
    return dataclasses.replace(exported, graphs=graphs, embedding_spec=spec)


def _shared(staging: Path, decoders: dict[str, GraphSpec]) -> dict[str, GraphSpec]:
    """The decoders with their weights in one file."""
    share_weights(staging, [spec.file for spec in decoders.values()], DECODER_DATA)
    return {name: dataclasses.replace(spec, data_file=DECODER_DATA) for name, spec in decoders.items()}


def _move_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        path.replace(target / path.name)


def _compared(exported: Exported, folder: Path, precision: str) -> ParityTable:
    """Every dialect of a folder's graphs against the reference."""
    write_manifest(manifest_of(exported, precision), folder)
    bundle = read_bundle(folder, defer=True)
    rows: list[ParityRow] = []
    for dialect in bundle.manifest.dialects:
        logger.info("parity in %s: %s", precision, dialect)
        with StartedModel(bundle, dialect=dialect, threads=EXPORT_THREADS) as model:
            rows += decoder_rows(exported.reference, model) if rows else measure_parity(exported.reference, model)
    return parity_table(rows)


def _refuse_overflow(converted: Exported, staging: Path, plan: ExportPlan) -> None:
    files = {path.name: path.read_bytes() for path in staging.iterdir()}
    bundle = Bundle(staging, "", manifest_of(converted, plan.label), files)
    image = next(iter(golden_images(converted.processor.images.tiles_px).values()))
    refuse_overflow(bundle, layer_values_from_bytes(converted.layers, LAYERS_FILE), image, threads=EXPORT_THREADS)


def _check_parity(checkpoint: Path, table: ParityTable) -> None:
    if not table.passed:
        worst = table.rows[0]
        failed = sum(not row.passed for row in table.rows)
        agreement = "" if worst.argmax_agreement is None else f", {worst.argmax_agreement:.1%} of the tokens agree"
        raise ExportError(
            f"{checkpoint}: parity failed in {failed} of {len(table.rows)} outputs, no bundle was written. Worst: "
            f"{worst.graph} in {worst.precision}, {worst.case}, {worst.output}: "
            f"error {worst.max_abs:.2e}, limit {worst.limit:.2e}; root mean square {worst.rms:.1e} of the output's{agreement}"
        )


def _language(exported: Exported, exact: Path, staging: Path, frames: Frames | None) -> tuple[LanguageRow, ...]:
    """What rounding cost in words: both bundles hear the same answers."""
    held_out = frames.held_out if frames is not None else ()
    spoken = spoken_records(exported.processor, held_out)
    heard: list[Heard] = []
    for folder in (exact, staging):
        with StartedModel(read_bundle(folder, defer=True), threads=EXPORT_THREADS) as model:
            if not spoken:
                spoken = own_answers(model, exported.reference.images, exported.reference.questions)
            heard.append(listen(model, spoken))
    kept_back = f"{len(held_out)} answers of {frames.kind} kept back" if frames is not None else ""
    told = kept_back if held_out else "the fp32 model's own answers to test pictures"
    return (language_row(told, *heard),)


def _finish(exported: Exported, staging: Path, plan: ExportPlan, parity: ParityTable, language: Sequence[LanguageRow]) -> None:
    """What needs the bundle at work, and the manifest over all of it."""
    (staging / LAYERS_FILE).write_bytes(exported.layers)
    manifest = dataclasses.replace(
        manifest_of(exported, plan.label),
        parity=tuple(parity.to_json()),
        language=tuple(row.to_json() for row in language),
    )
    write_manifest(manifest, staging)
    with StartedModel(read_bundle(staging, defer=True), threads=EXPORT_THREADS) as model:
        golden = record_golden(model)
    (staging / GOLDEN_FILE).write_bytes(golden)
    write_manifest(manifest, staging)


def _accuracy(
    checkpoint: Checkpoint, exported: Exported, exact: Path, staging: Path, plan: ExportPlan
) -> tuple[AccuracyRow, ...]:
    """The evaluation set's table, also put into the manifest. For an adapter, merged, its fp32 graphs stand."""
    if plan.settings.evaluation is None:
        return ()
    before = exact if exported.origin["kind"] == "lora" else checkpoint
    logger.info("answering %s", plan.settings.evaluation)
    rows = tuple(accuracy_rows(before, staging, plan.settings.evaluation))
    manifest = read_bundle(staging).manifest
    write_manifest(dataclasses.replace(manifest, accuracy=tuple(row.to_json() for row in rows)), staging)
    return rows
