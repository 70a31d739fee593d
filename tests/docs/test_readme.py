"""Every command and YAML of the README, run from a folder of tiny stand-ins.

The README's commands run word for word, one after another, in a folder that holds what they name: tiny checkpoints instead of
InternVL3, a few made records instead of DriveLM. The shipped YAML is the real one with two training steps. What needs a hub or a
sourced ROS installation is parsed alone; the ROS packages themselves are built and run by tests/ros2_ws.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from places import ROOT
from tiny_run import TinyRun
from video_clip import write_video

from drivekd.cli import main
from drivekd.config import RunConfig

pytestmark = pytest.mark.e2e

NEEDS_MORE = {"hf", "ros2", "colcon", "make"}  # a hub, ROS, or this very test suite
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if shlex.split(line, comments=True)]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, tiny_run: TinyRun) -> Path:
    """A folder in which the README's commands find everything they name."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("InternVL3-8B-hf", "InternVL3-1B-hf"):
        source = tiny_run.teacher if "8B" in name else tiny_run.student
        shutil.copytree(source, folder / "checkpoints" / name)
    for capability in ("reasoning", "planning"):  # README: "likewise"
        shutil.copytree(tiny_run.teacher, folder / "runs" / f"teacher-{capability}" / "final")
    _write_drivelm(folder)
    (folder / "data").mkdir()
    (folder / "drivebench.json").write_text(json.dumps([_drivebench_record()]))
    Image.fromarray(np.full((90, 160, 3), 120, np.uint8)).save(folder / "road.jpg")
    write_video(folder / "road.mp4", [np.full((90, 160, 3), 9 * i, np.uint8) for i in range(12)], "mpeg4", "yuv420p")
    settings = yaml.safe_load((ROOT / "configs" / "internvl3-1b.yaml").read_text())
    settings["training"] |= {"steps": 2, "checkpoint_every_steps": 1, "precision": "fp32", "device": "cpu"}
    (folder / "configs").mkdir()
    (folder / "configs" / "internvl3-1b.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def ran(stand_ins: Path) -> list[tuple[str, object, str]]:
    """Every command with its exit code and stderr, in README's order, as far as they succeed.

    In one process: twenty times torch's import would be most of the test.
    """
    found: list[tuple[str, object, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stand_ins)
        for words in (words for words in commands() if words[0] == "drivekd"):
            if words[1] == "calibrate":
                _write_many(Path("data/validation.json"))
            patch.setattr("sys.argv", words)
            with redirect_stderr(io.StringIO()) as stderr, redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as done:
                main()
            found.append((shlex.join(words), done.value.code, stderr.getvalue()))
            if done.value.code:
                break
    return found


def test_commands(ran: list[tuple[str, object, str]]) -> None:
    command, code, stderr = ran[-1]
    assert code == 0, f"{command}\n{stderr}"
    assert len(ran) >= 15


def test_python(stand_ins: Path, ran: list[tuple[str, object, str]]) -> None:
    """On the bundle that the commands have made."""
    assert ran
    (snippet,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", snippet], cwd=stand_ins, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_yaml() -> None:
    for block in blocks("yaml"):
        RunConfig.model_validate(yaml.safe_load(block))
    for path in (ROOT / "configs").glob("*.yaml"):
        RunConfig.model_validate(yaml.safe_load(path.read_text()))


def test_everything_else_is_known() -> None:
    """A command of another program in README would be run by nobody."""
    others = {words[0] for words in commands()} - {"drivekd", ".venv/bin/drivekd"}
    assert others <= NEEDS_MORE
    assert all((ROOT / link).exists() for link in re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / "README.md").read_text()))


def _write_drivelm(folder: Path) -> None:
    """Three scenes: as many as files of a split."""
    scenes = {name: _drivelm_scene(folder, name) for name in ("a", "c", "d")}
    (folder / "v1_1_train_nus.json").write_text(json.dumps({f"scene-{name}": scene for name, scene in scenes.items()}))


def _drivelm_scene(folder: Path, name: str) -> dict[str, Any]:
    for camera in CAMERAS:
        path = folder / "nuscenes" / "samples" / camera / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((45, 80, 3), 90 + ord(name), np.uint8)).save(path)
    asked = "What is the moving status of object <c1,CAM_FRONT,800.0,450.0>? Options: A. Going ahead. B. Stopped."
    frame: dict[str, Any] = {
        "key_object_infos": {},
        "QA": {topic: [{"Q": asked, "A": "A", "tag": [0]}] for topic in ("perception", "prediction", "planning", "behavior")},
        "image_paths": {camera: f"../nuscenes/samples/{camera}/{name}.jpg" for camera in CAMERAS},
    }
    return {"scene_description": "A street.", "key_frames": {f"frame-{name}": frame}}


def _write_many(records: Path) -> None:
    """What calibrating needs: more answers, of more scenes, than the files of the split have."""
    (record, *_) = json.loads(records.read_text(encoding="utf-8"))
    many = [
        {**record, "question_type": capability, "meta": {**record["meta"], "scene": f"scene-{index}", "frame": f"frame-{index}"}}
        for capability in ("perception", "reasoning", "planning")
        for index in range(110)
    ]
    records.write_text(json.dumps(many), encoding="utf-8")


def _drivebench_record() -> dict[str, Any]:
    return {
        "scene_token": "scene-b",
        "frame_token": "frame-b",
        "question_type": "perception",
        "question": "What is the moving status of object <c1,CAM_FRONT,800.0,450.0>? Options: A. Going ahead. B. Stopped.",
        "answer": "A",
        "tag": [0],
        "image_path": {camera: f"other/{camera}.jpg" for camera in CAMERAS},
    }
