"""The command line: each verb parses, calls one function and prints its result. Heavy imports are inside the verbs.

Exit codes: 0 done, 1 it failed, 2 you asked wrongly. stdout is the result, talk goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from drivekd.cli.data_verbs import Out, data
from drivekd.errors import DrivekdError
from drivekd.log import configure_logging, take_every_letter


class Verbs(TyperGroup):
    """Ctrl-C is a failure like others, exit code 1; typer would turn it into a silent exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise DrivekdError("interrupted; nothing was left half-written") from error


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="From a data-centre driving VLM to the computer in a car: distil, export, run, ROS 2.",
)
app.add_typer(data, name="data")

Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the YAML.")]
ExportOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting, such as calibration=FILE; all: docs/export.md.",
    ),
]
JudgeOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting: endpoint=URL, model=NAME, key_env=VARIABLE; all: docs/judging.md."
    ),
]
EvalOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting, such as device=cuda:1, precision=bf16 or shard=1/4; all: docs/evaluation.md.",
    ),
]
CalibrateOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as risk=0.05 or device=cuda:1; all: docs/calibration.md."),
]
PublicKey = Annotated[Path | None, typer.Option("--public-key", metavar="KEY.pub", help="Whose private key must have signed it.")]
Structured = Annotated[bool, typer.Option("--structured", help="Answers as JSON under the bundle's schemas.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def main() -> None:
    """Entry point of the `drivekd` command."""
    take_every_letter()
    configure_logging()
    try:
        app(standalone_mode=True)
    except DrivekdError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {where}{error.strerror or error}", err=True)
        sys.exit(1)


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    from drivekd.tables import print_table

    print_table(title, header, rows)


def _talk(line: str) -> None:
    typer.echo(line, err=True)


def _version(wanted: bool) -> None:
    if wanted:
        from drivekd.files import versions

        for name, value in versions().items():
            typer.echo(f"{name} {value}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions that matter.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Out = Path("out/demo"),
    video: Annotated[Path | None, typer.Option("--video", help="Play this road clip to the ROS node as well.")] = None,
) -> None:
    """World, student, evaluation, ONNX bundle, ROS topics: the whole way, on this machine."""
    from drivekd.demo.pipeline import run_demo

    typer.echo(run_demo(out, video=video))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The run's YAML.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; default runs/<name of the YAML>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, measure a few steps, write nothing.")] = False,
) -> None:
    """Distil a student from its teachers, or fine-tune when there are none."""
    from drivekd.config import load_config

    settings = load_config(config, overrides or [])
    from drivekd.distill.dry_run.plan import dry_run as measure
    from drivekd.distill.training.train import train as run

    place = out or Path("runs") / config.stem
    if dry_run:
        plan = measure(settings, place)
        if plan.rows:  # one process of a launcher's has them
            _print_table(f"dry run of {config}", ["", ""], [list(row) for row in plan.rows])
        return plan.check()
    summary = run(settings, place, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # under `accelerate launch` every process comes here
        told = [str(summary.final), f"{summary.steps} steps", *(f"{name} {value:.3g}" for name, value in summary.loss.items())]
        told += [] if summary.validation_loss is None else [f"validation {summary.validation_loss:.3g}"]
        told += [] if summary.validation_accuracy is None else [f"accuracy {summary.validation_accuracy:.3f}"]
        typer.echo("  ".join(told))


@app.command()
def analyze(config: Path, out: Out = Path("analysis"), overrides: Overrides = None) -> None:
    """Which layers of student and teachers to distil, by capability; `signals.layers` reads OUT/analysis.json."""
    from drivekd.analyze import analyze as run
    from drivekd.config import load_config

    header, rows = run(load_config(config, overrides or []), out)
    _print_table(f"layers to distil; curves and signals.layers in {out / 'analysis.json'}", header, rows)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A checkpoint directory or a bundle.")],
    file: Annotated[Path, typer.Option("--data", help="Records to score on.")],
    out: Out,
    reference: Annotated[
        Path | None, typer.Option(help="Records whose majority answer is the baseline; default: --data.")
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of relative image paths; default: that of --data.")] = None,
    settings: Annotated[
        str, typer.Option(help="Of the pictures: clean, NoImage, Fog, ..., several with commas, or all.")
    ] = "clean",
    black: Annotated[bool, typer.Option("--black", help="The same as --settings NoImage: what the prior alone scores.")] = False,
    structured: Structured = False,
    overrides: EvalOverrides = None,
) -> None:
    """Accuracy by capability with majority and random baselines and 95 % intervals; stopped, the same command goes on."""
    from drivekd.evaluate.evaluation import EvalRequest, evaluate_file
    from drivekd.evaluate.scores import METRIC_COLUMNS
    from drivekd.evaluate.sheet.sheet import write_sheet

    wanted = "NoImage" if black else settings
    request = EvalRequest(model, file, out, image_root, reference, wanted, structured, overrides or ())
    found = evaluate_file(request)
    if found.finished:
        if found.rows:
            _print_table(f"{model} on {file}", found.header, found.rows)
        if found.metrics:
            _print_table(f"by what else an answer is scored, {found.metrics_of}", list(METRIC_COLUMNS), found.metrics)
        _talk(f"score sheet: {write_sheet(out)}")
    for note in found.notes:
        _talk(note)


@app.command("score")
def score_answers(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            help="predictions.jsonl, an eval's folder, DriveLM's or DriveBench's answers; or several folders to compare."
        ),
    ],
    out: Out,
    file: Annotated[Path | None, typer.Option("--data", help="Records that they answer; not for a comparison.")] = None,
    compat: Annotated[str | None, typer.Option(help="drivelm | drivebench: upstream's own rules beside ours.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Records whose majority answer is the baseline; default: --data.")
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of relative image paths; default: that of --data.")] = None,
) -> None:
    """Score answers that are there already, or compare runs with the first of them; nothing is asked."""
    from drivekd.cli.score import score_command

    score_command(predictions, file, out, compat, reference, image_root, show=_print_table, say=_talk)


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="A checkpoint directory or a bundle.")],
    file: Annotated[Path, typer.Option("--data", help="Labelled records that it was not trained on.")],
    image_root: Annotated[Path | None, typer.Option(help="Folder of relative image paths; default: that of --data.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new bundle, or a folder; default: in place.")] = None,
    answers: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the answers here, or use those of an eval.")] = None,
    structured: Structured = False,
    overrides: CalibrateOverrides = None,
) -> None:
    """How likely an answer is right, by capability: fitted on half of the scenes, reported on the others, stored for the car."""
    from drivekd.cli.calibrate import calibrate_command
    from drivekd.evaluate.confidence.calibrate import CalibrationRequest

    request = CalibrationRequest(model, file, image_root, answers, structured, overrides or ())
    report = calibrate_command(request, out, _talk)
    _print_table(f"confidence of {model} on {file}", list(report.header), report.table)
    for note in report.notes:
        _talk(note)


@app.command()
def judge(
    folder: Annotated[Path, typer.Argument(metavar="EVAL_DIR", help="An evaluation's folder, with predictions.jsonl.")],
    overrides: JudgeOverrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Calls, tokens, cost and the first prompts; asks nobody.")] = False,
) -> None:
    """Marks from 0 to 100 by a language model, in columns of their own; what was judged is kept."""
    from drivekd.evaluate.judge.command import dry_run_command, judge_command
    from drivekd.evaluate.judge.settings import judge_settings
    from drivekd.evaluate.sheet.sheet import renew_sheet

    settings = judge_settings(overrides or ())
    if dry_run:
        return dry_run_command(folder, settings, show=_print_table, say=typer.echo)
    judge_command(folder, settings, show=_print_table, say=_talk, draw=renew_sheet)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A checkpoint, run or adapter; or a bundle, to add engines, kit or signature.")],
    out: Annotated[Path | None, typer.Option("--out", help="The bundle to write.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default) | fp16 | int8 | int4 (vision then int8)")] = None,
    overrides: ExportOverrides = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build TensorRT engines for this device.")] = False,
    kit: Annotated[str | None, typer.Option(help="edgellm: what NVIDIA's TensorRT Edge-LLM needs.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="With --kit on a bundle: where it came from.")] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY.pem", help="Sign the bundle with a private key.")] = None,
) -> None:
    """ONNX graphs, verified against the model, in one bundle."""
    from drivekd.export.export import Extras, export_command

    extras = Extras(trt=trt, kit=kit, sign=sign, checkpoint=checkpoint)
    export_command(source, out, precision, overrides or (), extras, show=_print_table, say=_talk)


@app.command()
def check(
    bundle: Path,
    verbose: Annotated[bool, typer.Option("--verbose", help="Graphs, shapes, sizes, memory, engines, origin.")] = False,
    expect_digest: Annotated[str | None, typer.Option(metavar="DIGEST", help="The digest that the bundle must have.")] = None,
    public_key: PublicKey = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="Name the first layer that computes something else.")] = False,
    outputs: Annotated[Path | None, typer.Option(metavar="out.json", help="Judge the answers of another engine.")] = None,
) -> None:
    """Verify a bundle: digests, signature, then the parity gate on this machine."""
    from drivekd.cli.check import check_command

    check_command(
        bundle,
        verbose=verbose,
        expect_digest=expect_digest,
        public_key=public_key,
        bisect=bisect,
        outputs=outputs,
        show=_print_table,
    )


@app.command()
def doctor(ros: Annotated[bool, typer.Option("--ros", help="Check ROS 2 as well.")] = False) -> None:
    """What this machine can run, and what to install for the rest."""
    from drivekd.cli.doctor import findings

    _print_table("doctor", ["", "found", "what to do"], findings(ros=ros))


@app.command()
def run(
    bundle: Path,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Images in camera order, a folder, a video; CAMERA=FILE names one.")
    ],
    question: Annotated[str | None, typer.Option(help="Ask this instead of the bundle's three questions.")] = None,
    structured: Structured = False,
    deadline_ms: Annotated[float | None, typer.Option(min=0, help="End each frame's answers after so many ms.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Of a video or folder take each N-th picture.")] = 1,
    overlay: Annotated[Path | None, typer.Option(metavar="DIR", help="Write pictures with the answers drawn on them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a frame, each on a line.")] = False,
    public_key: PublicKey = None,
) -> None:
    """Perception, reasoning and planning for one frame, or for each of many."""
    from drivekd.cli.live import LiveTexts
    from drivekd.runtime.run import run_command

    options: dict[str, Any] = {"question": question, "structured": structured, "deadline_ms": deadline_ms, "every": every}
    with LiveTexts(quiet=as_json) as live:
        for frame in run_command(bundle, images, overlay=overlay, on_texts=live.show, public_key=public_key, **options):
            typer.echo(json.dumps(frame.to_json()) if as_json else "\n".join(frame.lines()))
    if frame.note and not as_json:
        _talk(f"note: {frame.note}")


@app.command()
def bench(
    bundle: Path,
    structured: Structured = False,
    changed: Annotated[int | None, typer.Option(min=0, help="Cameras that show something new each frame; default all.")] = None,
    as_json: AsJson = False,
    public_key: PublicKey = None,
) -> None:
    """Milliseconds by stage on this machine (p50, p95, p99), its clocks and watts, beside the paper's figures."""
    from drivekd.runtime import bench_bundle
    from drivekd.runtime.bench_tables import bench_tables

    report = bench_bundle(bundle, structured=structured, changed=changed, public_key=public_key)
    if as_json:
        return typer.echo(json.dumps(report.to_json()))
    for table in bench_tables(report):
        _print_table(*table)


@app.command()
def report(run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR")]) -> None:
    """One HTML page with the run's curves."""
    from drivekd.cli.report import write_run_report

    typer.echo(write_run_report(run_directory))
