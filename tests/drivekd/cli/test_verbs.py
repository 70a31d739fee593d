"""The command line: its verbs and flags are a promise, its exit codes too, and --help loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command_fixtures import Run
from tiny_run import TinyRun

from drivekd import __version__
from drivekd.cli import verbs as cli
from drivekd.errors import BundleError, ConfigError, DataError, DrivekdError, UsageError

# Every verb with its arguments in order and its flags. A new knob goes into the YAML, not here.
SURFACE = {
    "": ([], ["--version"]),
    "demo": ([], ["--out", "--video"]),
    "data": ([], []),
    "data world": ([], ["--cameras", "--frames", "--labelled", "--out", "--seed", "--test", "--validation"]),
    "data validate": (
        ["FILE"],
        ["--capability", "--checkpoint", "--fix", "--frames", "--image-root", "--json", "--skip-images", "--unlabelled"],
    ),
    "data convert": (["SOURCE"], ["--capability", "--frames", "--image-root", "--out", "--skip", "--to"]),
    "data overlap": (["FIRST", "SECOND"], ["--image-root", "--image-root-a", "--image-root-b"]),
    "data split": (["FILE"], ["--image-root", "--out", "--seed", "--test", "--validation"]),
    "train": (["CONFIG"], ["--dry-run", "--out", "--resume", "--set"]),
    "analyze": (["CONFIG"], ["--out", "--set"]),
    "eval": (
        ["MODEL"],
        ["--black", "--data", "--image-root", "--out", "--reference", "--set", "--settings", "--structured"],
    ),
    "score": (["PREDICTIONS"], ["--compat", "--data", "--image-root", "--out", "--reference"]),
    "calibrate": (["MODEL"], ["--answers", "--data", "--image-root", "--out", "--set", "--structured"]),
    "judge": (["FOLDER"], ["--dry-run", "--set"]),
    "export": (["SOURCE"], ["--checkpoint", "--kit", "--out", "--precision", "--set", "--sign", "--trt"]),
    "check": (["BUNDLE"], ["--bisect", "--expect-digest", "--outputs", "--public-key", "--verbose"]),
    "doctor": ([], ["--ros"]),
    "run": (
        ["BUNDLE", "IMAGES"],
        ["--deadline-ms", "--every", "--json", "--overlay", "--public-key", "--question", "--structured"],
    ),
    "bench": (["BUNDLE"], ["--changed", "--json", "--public-key", "--structured"]),
    "report": (["RUN_DIRECTORY"], []),
}


def surface(command: Any, name: str = "") -> dict[str, tuple[list[str], list[str]]]:
    arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
    flags = sorted(flag for p in command.params if p.param_type_name == "option" for flag in [*p.opts, *p.secondary_opts])
    found = {name: (arguments, flags)}
    for verb, inner in getattr(command, "commands", {}).items():
        found |= surface(inner, f"{name} {verb}".strip())
    return found


# --- the promise ----------------------------------------------------------------------------------------------------


def test_verbs_arguments_and_flags_are_exactly_these() -> None:
    assert surface(typer.main.get_command(cli.app)) == SURFACE


@pytest.mark.parametrize("verb", [verb for verb in SURFACE if verb])
def test_every_verb_explains_itself_on_stdout(run: Run, verb: str) -> None:
    code, out, err = run(*verb.split(), "--help")
    assert (code, err) == (0, "")
    assert all(flag in out for flag in SURFACE[verb][1])


@pytest.mark.e2e
def test_help_imports_nothing_heavy() -> None:
    """--help must be instant, and must work in the car, where there is no torch."""
    heavy = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "PIL", "pydantic", "yaml", "tokenizers", "matplotlib")
    code = (
        "import sys; sys.argv = ['drivekd', '--help']\n"
        "from drivekd.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"sys.exit(' '.join(name for name in {heavy!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.split() == []
    assert "train" in done.stdout


def test_version_lists_what_decides_numbers(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.splitlines()[0] == f"drivekd {__version__}"
    assert any(line.startswith("torch ") for line in out.splitlines())


# --- exit codes and streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "x.yaml", "--fast"],
        ["data", "world"],
        ["data", "world", "--out", "w", "--frames", "0"],
        ["eval", "model"],
    ],
    ids=" ".join,
)
def test_asking_wrongly_exits_2_with_nothing_on_stdout(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "expected_code"),
    [
        (DrivekdError("boom"), 1),
        (DataError("x.json, record 3: boom"), 1),
        (BundleError("boom"), 1),
        (UsageError("boom"), 2),
        (ConfigError("boom"), 2),
    ],
)
def test_our_errors_become_one_line_on_stderr(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: DrivekdError, expected_code: int
) -> None:
    assert fail_with(run, monkeypatch, error) == (expected_code, "", f"error: {error}\n")


def test_a_file_that_cannot_be_used_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = PermissionError(13, "Permission denied", "/runs/a")
    assert fail_with(run, monkeypatch, error) == (1, "", "error: /runs/a: Permission denied\n")
    assert fail_with(run, monkeypatch, OSError("odd")) == (1, "", "error: odd\n")


def test_ctrl_c_is_a_failure_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = fail_with(run, monkeypatch, KeyboardInterrupt())
    assert (code, out) == (1, "")
    assert err == "error: interrupted; nothing was left half-written\n"


def test_a_bug_of_ours_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_with(run, monkeypatch, ZeroDivisionError())


def fail_with(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> tuple[int, str, str]:
    def findings(*, ros: bool) -> None:
        raise error

    monkeypatch.setattr("drivekd.cli.doctor.findings", findings)
    return run("doctor")


# --- verbs that run in milliseconds ---------------------------------------------------------------------------------


def test_doctor_prints_its_table(run: Run) -> None:
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert "onnxruntime" in out


def test_a_wrong_configuration_is_refused_and_nothing_is_written(run: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    code, out, err = run("train", str(tiny_run.yaml), "--set", "training.stepps=3", "--out", str(tmp_path / "run"))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tiny_run.yaml}: unknown key training.stepps; known here: steps, ")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(run: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    code, _, err = run("train", str(tiny_run.yaml), "--out", str(tmp_path))
    assert code == 2
    assert err == f"error: {tmp_path} is not empty; give a new --out, or --resume to continue the run there\n"


def test_validate_exits_0_on_good_and_1_on_bad_records(run: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    good = tiny_run.folder / "train.json"
    assert run("data", "validate", str(good))[0] == 0
    records = json.loads(good.read_text())
    records[1]["question_type"] = "steering"
    (tmp_path / "bad.json").write_text(json.dumps(records))
    code, _, err = run("data", "validate", str(tmp_path / "bad.json"), "--image-root", str(tiny_run.folder))
    assert code == 1
    assert "record 2" in err
    assert "steering" in err


def test_validate_of_a_file_that_is_not_there_was_asked_wrongly(run: Run, tmp_path: Path) -> None:
    code, printed, err = run("data", "validate", str(tmp_path / "nowhere.json"))
    assert (code, printed) == (2, "")
    assert "nowhere.json: no such file" in err


def test_overlap_exits_1_when_files_share_pictures(run: Run, tiny_run: TinyRun) -> None:
    same = str(tiny_run.folder / "train.json")
    code, _, err = run("data", "overlap", same, same)
    assert code == 1
    assert "overlap" in err


def test_analyze_does_not_write_over_a_folder(run: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    code, _, _ = run("analyze", str(tiny_run.yaml), "--out", str(tmp_path))
    assert code == 2
    assert (tmp_path / "thesis.tex").exists()
