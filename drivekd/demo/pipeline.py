"""The demo: world -> student (fine-tuned, distilled) -> evaluation -> ONNX bundle -> three answers -> ROS topics -> one table.

Every stage calls what the command line calls; results and a summary stay in the demo's folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from drivekd.config import RunConfig, load_config
from drivekd.data.readers import read_samples
from drivekd.demo import both_forms
from drivekd.demo.ros_workspace import build_workspace, run_ros_demo
from drivekd.distill.training.train import train
from drivekd.errors import UsageError
from drivekd.evaluate import EvaluationReport, ScoreRow, evaluate, write_report
from drivekd.evaluate.answering import CLEAN, Pictures, open_answerer
from drivekd.export import bundle_from_checkpoint
from drivekd.files import write_whole, write_whole_json
from drivekd.log import ProgressLine, logger
from drivekd.runtime.bench import bench_bundle
from drivekd.sample import CAPABILITIES, Sample
from drivekd.tables import render_table
from drivekd.world import WorldSettings, build_world

HEADER = ["", *CAPABILITIES]
TITLE = "accuracy on held-out scenes [95 % interval by scene]   * = not beyond the majority answer"


def accuracy_rows(reports: Mapping[str, EvaluationReport], baseline: EvaluationReport) -> list[list[str]]:
    """Rows of accuracy by capability: the majority answer first, then every report."""
    majority = ["majority answer", *(f"{baseline.row(name).majority:.3f}" for name in CAPABILITIES)]
    return [majority, *([who, *(format_score(report.row(name)) for name in CAPABILITIES)] for who, report in reports.items())]


def format_score(row: ScoreRow) -> str:
    """Accuracy with its 95 % interval, and a star when the interval does not lie beyond the majority answer's accuracy."""
    low, high = row.interval
    note = "" if row.beyond_majority else " *"
    return f"{row.accuracy:.3f} [{low:.3f}, {high:.3f}]{note}"


MODELS = Path(__file__).with_name("models")
CONFIG = Path(__file__).with_name("demo.yaml")
ROS_WORKSPACE = Path(__file__).resolve().parents[2] / "ros2_ws"
MARKER = ".drivekd-demo"
ROS_FRAMES = 4
NO_TEACHERS = ("teachers={}", "data.unlabelled=[]", "training.unlabelled_batch_size=0", "projection.anchor=shared")


@dataclass(frozen=True)
class DemoSize:
    """How much world and training; the default fits ten minutes on two cores."""

    world: WorldSettings = field(
        default_factory=lambda: WorldSettings(train_frames=2000, labelled_frames=400, validation_frames=50, test_frames=250)
    )
    overrides: tuple[str, ...] = ()


def run_demo(out: Path, *, video: Path | None = None, size: DemoSize | None = None) -> str:
    """Run every stage under `out` and return the final table as text. Raises UsageError when `out` holds something else."""
    size = size or DemoSize()
    started_s = time.monotonic()
    if not ROS_WORKSPACE.is_dir():
        raise UsageError(f"{ROS_WORKSPACE} is missing: run the demo from a clone of the repository, not from an installed wheel")
    _claim(out)
    with _stage("1/7 driving world"):
        _world(out / "world", size.world)
    with _stage("2/7 student, fine-tuned on the labels alone"):
        _student(out, "sft", [*size.overrides, *NO_TEACHERS])
    with _stage("3/7 student, distilled from three teachers"):
        _student(out, "distilled", size.overrides)
    with _stage("4/7 accuracy on held-out scenes"):
        accuracy = _accuracy_rows(out)
    with _stage("5/7 ONNX bundle, checked against the student"):
        bundle_rows = _bundle_rows(out)
        form_rows = _form_rows(out)
    with _stage("6/7 ROS 2 workspace"):
        install = build_workspace(ROS_WORKSPACE, out / "ros", log=out / "ros" / "build.log")
    with _stage("7/7 camera topic in, text topics out"):
        ros_rows = _ros_rows(out, install, video)
    minutes = (time.monotonic() - started_s) / 60
    tables = [
        render_table(TITLE, HEADER, accuracy),
        render_table(both_forms.TITLE, both_forms.HEADER, form_rows),
        render_table("bundle and ROS 2", ["", ""], [*bundle_rows, *ros_rows, ["whole demo", f"{minutes:.1f} minutes"]]),
    ]
    text = "\n".join(tables)
    write_whole(out / "summary.txt", text)
    found = {"accuracy": accuracy, "forms": form_rows, "bundle": bundle_rows, "ros": ros_rows, "minutes": minutes}
    write_whole_json(out / "summary.json", found)
    return text


def _claim(out: Path) -> None:
    """An earlier demo's folder is made anew; anything else is left alone."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise UsageError(f"{out} is not empty and no demo's folder; give another --out")
    for path in out.iterdir() if out.exists() else []:
        if path.is_dir() and path.name != "ros":  # the ROS workspace is rebuilt only when its sources change
            shutil.rmtree(path)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


@contextmanager
def _stage(name: str) -> Iterator[None]:
    logger.info("[%s]", name)
    started_s = time.monotonic()
    yield
    logger.info("[%s] %.0f s", name, time.monotonic() - started_s)


def _world(directory: Path, settings: WorldSettings) -> None:
    line = ProgressLine()
    build_world(directory, settings, progress=lambda done, total: line.show(f"frame {done}/{total}", final=done == total))


def _student(out: Path, name: str, overrides: Sequence[str]) -> None:
    """Train out/NAME from the shipped student with the demo's YAML."""
    train(_config(out, overrides), out / name)


def _config(out: Path, overrides: Sequence[str]) -> RunConfig:
    world = (out / "world").resolve()
    paths = [  # the YAML's own are right in a clone alone
        f"student.checkpoint={MODELS / 'student'}",
        *(f"teachers.{name}={MODELS / name}" for name in CAPABILITIES),
        f"data.train=[{world / 'train.json'}]",
        f"data.unlabelled=[{world / 'unlabelled.json'}]",
        f"data.validation={world / 'validation.json'}",
    ]
    return load_config(CONFIG, [*paths, *overrides])


def _accuracy_rows(out: Path) -> list[list[str]]:
    test = [sample for sample in read_samples(out / "world" / "test.json") if sample.answer_form != "open"]
    reference = read_samples(out / "world" / "train.json")
    teachers = [_evaluate(out, f"teacher-{name}", MODELS / name, _of(test, name), _of(reference, name)) for name in CAPABILITIES]
    reports = {
        "SFT student": _evaluate(out, "sft", out / "sft" / "final", test, reference),
        "distilled student": _evaluate(out, "distilled", out / "distilled" / "final", test, reference),
        "distilled student, black images": _evaluate(
            out, "distilled-black", out / "distilled" / "final", test, reference, black=True
        ),
    }
    rows = accuracy_rows(reports, reports["SFT student"])
    own = [format_score(report.row(name)) for name, report in zip(CAPABILITIES, teachers, strict=True)]
    return [rows[0], ["teachers, each on its own", *own], *rows[1:]]


def _of(samples: Sequence[Sample], capability: str) -> list[Sample]:
    return [sample for sample in samples if sample.capability == capability]


def _evaluate(
    out: Path, name: str, model: Path, samples: Sequence[Sample], reference: Sequence[Sample], *, black: bool = False
) -> EvaluationReport:
    line = ProgressLine()
    report = evaluate(
        open_answerer(model),
        samples,
        reference=reference,
        pictures=Pictures("NoImage") if black else CLEAN,
        on_progress=lambda done, total: line.show(f"{name}: {done}/{total} answers", final=done == total),
    )
    write_report(report, out / "evaluation" / name)
    return report


def _bundle_rows(out: Path) -> list[list[str]]:
    parity = bundle_from_checkpoint(out / "distilled" / "final", out / "bundle").parity
    worst = max(row.max_abs for row in parity.rows)
    timing = bench_bundle(out / "bundle")
    total = next(stage for stage in timing.stages if stage.stage == "total")
    return [
        ["export parity, torch against ONNX", f"max |difference| {worst:.1e} over {len(parity.rows)} outputs, passed"],
        ["three answers a frame", f"p50 {total.p50_ms:.1f} ms, p95 {total.p95_ms:.1f} ms ({timing.device}, {timing.backend})"],
    ]


def _form_rows(out: Path) -> list[list[str]]:
    line = ProgressLine()
    return both_forms.both_forms(
        out / "bundle",
        out / "world" / "test.json",
        reference=read_samples(out / "world" / "train.json"),
        on_progress=lambda done, total: line.show(f"structured: {done}/{total} frames", final=done == total),
    ).rows()


def _ros_rows(out: Path, install: Path, video: Path | None) -> list[list[str]]:
    frames = _held_out_frames(out / "world" / "test.json")
    answers = run_ros_demo(
        out / "bundle",
        install,
        [path for path, _ in frames],
        ego_speed_mps=[speed for _, speed in frames],
        count=len(CAPABILITIES) * len(frames),
        on_line=lambda line: logger.info("%s", line),
    )
    rows = [["ROS answers received", f"{len(answers)} of {len(CAPABILITIES) * len(frames)}, from held-out frames"]]
    rows += [[f"/{answer['capability']}", str(answer["text"])] for answer in answers[: len(CAPABILITIES)]]
    if video is not None:
        filmed = run_ros_demo(out / "bundle", install, video, count=len(CAPABILITIES) * ROS_FRAMES)
        rows.append([f"ROS answers to {video.name}", f"{len(filmed)}; a real road is outside the demo student's world"])
        rows += [[f"/{answer['capability']}", str(answer["text"])] for answer in filmed[: len(CAPABILITIES)]]
    return rows


def _held_out_frames(records: Path) -> list[tuple[Path, float]]:
    """The first held-out front images with their ego speeds, m/s."""
    found: dict[Path, float] = {}
    for record in json.loads(records.read_text(encoding="utf-8")):
        path = records.parent / record["images"][0]
        if "CAM_FRONT" in record["meta"]["cameras"]:
            found.setdefault(path, float(record["meta"]["ego_speed_mps"]))
    return list(found.items())[:ROS_FRAMES]
