"""`drivekd run` and `drivekd bench` as their user meets them: the commands of docs/running.md, word for word, on stand-ins."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from small_bundle import recompute
from video_clip import write_video

from drivekd.cli import main
from drivekd.export import bundle_from_checkpoint
from drivekd.runtime import read_bundle

pytestmark = pytest.mark.e2e

SHIPPED = ROOT / "drivekd" / "demo" / "models" / "student"
CAPABILITIES = ("perception", "reasoning", "planning")
NUM_PICTURES = 12
BENCH_TEXTS = ("p99 ms", "decode, one answer", "memory, peak", "45.7 tokens/s", "a GPU without a name", "images encoded a frame")
NOTE = "knows a world of colours alone"

Run = Callable[..., tuple[int, str, str]]


def commands() -> list[list[str]]:
    text = (ROOT / "docs" / "running.md").read_text()
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's commands find everything they name: the demo's student, and pictures of a road of colours."""
    folder = tmp_path_factory.mktemp("running")
    bundle_from_checkpoint(SHIPPED, folder / "bundle")
    recompute(
        folder / "bundle", dataclasses.replace(read_bundle(folder / "bundle").manifest, note=NOTE, cameras=())
    )  # of one or two
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for index in range(NUM_PICTURES):
        shades = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(shades).resize((160, 90), Image.Resampling.BICUBIC).save(folder / "pictures" / f"img{index}.png")
    for name in ("road", "front", "back"):
        Image.open(folder / "pictures" / "img0.png").save(folder / f"{name}.jpg")
    for camera in ("CAM_FRONT", "CAM_BACK"):
        shutil.copytree(folder / "pictures", folder / "samples" / camera)
    pictures = [np.asarray(Image.open(folder / "pictures" / f"img{index}.png")) for index in range(NUM_PICTURES)]
    write_video(folder / "drive.mp4", pictures, "mpeg4", "yuv420p", rate=5)
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `drivekd ARGUMENTS` in the folder -> exit code, stdout, stderr. In one process: imports would be most of the test."""
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["drivekd", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
        return int(done.value.code or 0), *capsys.readouterr()

    return call


@pytest.mark.parametrize("words", commands(), ids=shlex.join)
def test_the_pages_commands_run(run: Run, words: list[str]) -> None:
    assert words[0] == "drivekd"
    code, out, err = run(*words[1:])
    assert code == 0, err
    assert out
    if words[1] == "run":
        assert [name for name in CAPABILITIES if f"\n{name}" in f"\n{out}"] == list(CAPABILITIES)
    elif "--json" in words:
        assert json.loads(out)["answers"] == 3
    else:
        assert [text for text in BENCH_TEXTS if text not in out] == []


def test_the_page_is_read() -> None:
    """No command found would pass the test above."""
    assert len(commands()) >= 9
    assert {words[1] for words in commands()} == {"run", "bench"}


def test_every_flag_is_on_the_page() -> None:
    import typer

    from drivekd.cli import verbs as cli

    verbs = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    page = (ROOT / "docs" / "running.md").read_text()
    missing = [flag for verb in ("run", "bench") for option in verbs[verb].params for flag in option.opts if flag[0] == "-"]
    assert [flag for flag in missing if f"`{flag}" not in page and f" {flag}" not in page] == []


def test_a_video_gives_one_json_object_a_line(run: Run) -> None:
    code, out, _ = run("run", "bundle", "drive.mp4", "--every", "5", "--json")
    assert code == 0
    frames = [json.loads(line) for line in out.splitlines()]
    assert [frame["frame"]["time_s"] for frame in frames] == [0.0, 1.0, 2.0]
    assert all(tuple(frame["answers"]) == CAPABILITIES for frame in frames)


def test_a_video_as_text_has_a_heading_a_frame(run: Run) -> None:
    code, out, err = run("run", "bundle", "drive.mp4", "--every", "10")
    assert code == 0
    assert "000000  drive.mp4 at 0.00 s\nperception: " in out
    assert "000010  drive.mp4 at 2.00 s\nperception: " in out
    assert err == f"note: {NOTE}\n", "what the bundle's maker wants to be known, once"


def test_overlays_of_a_video_make_a_video(run: Run, tmp_path: Path) -> None:
    code, _, err = run("run", "bundle", "drive.mp4", "--every", "4", "--overlay", str(tmp_path / "seen"))
    assert code == 0, err
    pictures = sorted((tmp_path / "seen").iterdir())
    assert [path.name for path in pictures] == [f"{index:06d}-overlay.jpg" for index in (0, 4, 8)]
    assert len({Image.open(path).size for path in pictures}) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "bundle", "nowhere.jpg"], 1, "nowhere.jpg: image cannot be read"),
        (["run", "bundle", "road.jpg", "drive.mp4"], 2, "road.jpg is one picture, drive.mp4 many"),
        (["run", "bundle", "road.jpg", "--structured", "--question", "Why?"], 2, "question"),
        (["bench", "bundle", "--changed", "9"], 2, "9 changed cameras asked"),
    ],
)
def test_what_is_refused(run: Run, arguments: list[str], code: int, message: str) -> None:
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
