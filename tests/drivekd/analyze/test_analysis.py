"""`drivekd analyze` as a whole: what it writes, what `train` reads of it, which samples it takes, what it refuses."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from analyze_cases import CPU, write_qwen
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import TinyRun

from drivekd.analyze import analyze
from drivekd.analyze.analysis import SAMPLES_PER_CAPABILITY, choose, measure, open_pair
from drivekd.analyze.curves import Curves
from drivekd.analyze.measured_model import MeasuredModel
from drivekd.analyze.picks import pick
from drivekd.analyze.plots import PLOTS
from drivekd.data.readers import read_samples
from drivekd.distill.signals import signal_for
from drivekd.distill.teachers.layer_choices import signal_config
from drivekd.errors import CheckpointError, ConfigError, UsageError
from drivekd.sample import CAPABILITIES, Capability, Sample

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


@dataclass(frozen=True)
class Analysed:
    out: Path
    header: list[str]
    rows: list[list[str]]
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads((self.out / "analysis.json").read_text())
        return tree


def analysed(run: TinyRun, out: Path, *overrides: str) -> Analysed:
    config = run.config("teachers.planning=null", *overrides)
    with redirect_stdout(StringIO()) as stdout, redirect_stderr(StringIO()) as stderr:
        header, rows = analyze(config, out)
    assert stdout.getvalue() == ""  # the command line alone prints
    return Analysed(out, header, rows, stderr.getvalue())


@pytest.fixture(scope="module")
def found(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """Perception and reasoning share a teacher, planning has none."""
    return analysed(tiny_run, tmp_path_factory.mktemp("analysed") / "out")


def test_a_run_writes_what_train_reads(tiny_run: TinyRun, found: Analysed) -> None:
    tree = found.json
    assert set(tree) == {"pair", "capabilities", "curves", "samples"}
    assert tree["pair"]["student"] == {"checkpoint": str(tiny_run.student), "depth": 3}
    teacher = {"checkpoint": str(tiny_run.teacher), "depth": 4}
    assert tree["pair"]["teacher"] == {"perception": teacher, "reasoning": teacher}
    assert tree["samples"] == {name: {"analysed": 6, "available": 6} for name in CAPABILITIES}
    assert list(tree["capabilities"]) == list(CAPABILITIES)
    for name, chosen in tree["capabilities"].items():
        assert set(chosen) == {"student_layers", "teacher_layers", "signal", "reason"}
        assert chosen["student_layers"] != []
        assert (chosen["teacher_layers"] == []) == (name == "planning")
    assert "no teacher" in tree["capabilities"]["planning"]["reason"]


@pytest.mark.parametrize("capability", ["perception", "reasoning"])
def test_train_reads_the_file(found: Analysed, tiny_run: TinyRun, capability: Capability) -> None:
    config = tiny_run.config(f"signals.layers={found.out / 'analysis.json'}").signals
    signal = signal_for(capability, signal_config(capability, config, 3, 4), 3, 4, "window")  # refuses layers that do not exist
    chosen = found.json["capabilities"][capability]
    assert list(signal.student_layers) == chosen["student_layers"]
    assert list(signal.teacher_layers) == chosen["teacher_layers"]
    assert signal.loss == {"attention": "mse", "hidden": "hidden"}[chosen["signal"]]


def test_the_written_curves_are_the_measured_ones(tiny_run: TinyRun, found: Analysed) -> None:
    tree = found.json
    samples = [s for s in read_samples(tiny_run.folder / "train.json") if s.capability == "reasoning"]
    measured = MeasuredModel(tiny_run.teacher, CPU, torch.float32).curves(samples)
    assert tree["curves"]["teacher"]["reasoning"] == measured.to_json()  # JSON keeps every bit of a float
    assert set(tree["curves"]["teacher"]) == {"perception", "reasoning"}
    assert set(tree["curves"]["student"]) == set(CAPABILITIES)
    picked = pick("reasoning", Curves(**{k: tuple(v) for k, v in tree["curves"]["student"]["reasoning"].items()}), measured)
    assert tree["capabilities"]["reasoning"] == picked.to_json()


def test_each_teacher_is_measured_on_its_own_capability(tiny_run: TinyRun) -> None:
    """The student itself teaches reasoning: its curves come twice, and perception's are the other teacher's."""
    config = tiny_run.config("teachers.planning=null", f"teachers.reasoning={tiny_run.student}")
    samples = {name: read_samples(tiny_run.folder / "train.json")[index::3][:2] for index, name in enumerate(CAPABILITIES)}
    measured = measure(config, open_pair(config), samples)
    assert measured["teacher"]["reasoning"] == measured["student"]["reasoning"]
    assert {name: curves.depth for name, curves in measured["teacher"].items()} == {"perception": 4, "reasoning": 3}


def test_the_table_plots_and_progress(found: Analysed) -> None:
    assert found.header == ["capability", "student layers", "teacher layers", "signal", "reason"]
    assert [row[0] for row in found.rows] == list(CAPABILITIES)
    assert all(len(row) == len(found.header) for row in found.rows)
    assert found.rows[2][2] == "-"
    assert {path.name for path in found.out.iterdir()} == {"analysis.json", *(plot.file for plot in PLOTS)}
    for plot in PLOTS:
        colours = Image.open(found.out / plot.file).convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 100  # lines of three colours and their shades, not an empty page
    assert "teacher teacher, reasoning: 6 of 6 samples" in found.stderr
    assert "student student, planning: 6 of 6 samples" in found.stderr


def test_without_teachers_the_student_is_analysed(tiny_run: TinyRun, tmp_path: Path) -> None:
    overrides = ("teachers={}", "data.unlabelled=[]", "training.unlabelled_batch_size=0", "data.capabilities=[planning]")
    found = analysed(tiny_run, tmp_path / "out", *overrides)
    assert list(found.json["capabilities"]) == ["planning"]
    assert found.json["pair"]["teacher"] == found.json["curves"]["teacher"] == {}


def test_a_single_record_gets_the_papers_layers(tiny_run: TinyRun, tmp_path: Path) -> None:
    """And a capability without any record is left out with a word, not with made-up layers."""
    (tmp_path / "few.json").write_text(json.dumps(json.loads((tiny_run.folder / "train.json").read_text())[:1]))
    data = (f"data.train=[{tmp_path / 'few.json'}]", f"data.image_root={tiny_run.folder}")
    found = analysed(tiny_run, tmp_path / "out", *data)
    assert list(found.json["capabilities"]) == ["perception"]
    assert found.json["capabilities"]["perception"]["student_layers"] == [0]
    assert "as in the paper, since similarity needs two samples" in found.json["capabilities"]["perception"]["reason"]
    assert found.json["curves"]["student"]["perception"]["similarity"] == []


def test_a_folder_that_holds_something_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not empty"):
        analyze(tiny_run.config(), tmp_path)


def test_another_familys_teacher_is_refused_before_any_work(tiny_run: TinyRun, tmp_path: Path) -> None:
    write_qwen(tmp_path / "qwen")
    with pytest.raises(ConfigError, match=r"teachers.reasoning = .*qwen2_5_vl"):
        analyze(tiny_run.config(f"teachers.reasoning={tmp_path / 'qwen'}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_finite_is_named(tiny_run: TinyRun, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_run.teacher.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "layers.2.mlp.down_proj" in name and "language_model" in name)
    weights[name].fill_(torch.inf)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"broken: adjacent_cosine\[2\] is nan"):
        analyze(tiny_run.config(f"teachers.planning={broken}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_samples_are_drawn_over_the_whole_file() -> None:
    many = [Sample(f"r{i}", "planning", "?", "A", (Path("x.png"),)) for i in range(1000)]
    drawn = choose(many, seed=0)
    numbers = [int(sample.source[1:]) for sample in drawn]
    assert len(set(numbers)) == SAMPLES_PER_CAPABILITY == 64
    assert numbers == sorted(numbers)
    assert all(any(start <= n < start + 250 for n in numbers) for start in range(0, 1000, 250))
    assert choose(many, seed=0) == drawn != choose(many, seed=1)
    assert choose(many[:10], seed=0) == many[:10]
