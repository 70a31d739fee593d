"""The builder and the round trip over three processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from places import ROOT, TESTS

from drivekd.demo.ros_workspace import STAMP, build_workspace, ros_environment, run_ros_demo, sources_digest
from drivekd.errors import DrivekdError, UsageError

pytestmark = pytest.mark.ros

FAKE_NODE = (str(TESTS / "cases" / "fake_node.py"),)
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "fake.json").write_text("{}")
    return tmp_path


@pytest.fixture
def frames(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"frame{number}.png" for number in range(len(COLOURS))]
    for path, colour in zip(paths, COLOURS, strict=True):
        Picture.fromarray(np.full((48, 64, 3), colour, np.uint8)).save(path)
    return paths


def test_an_unchanged_workspace_is_not_built_again(install: Path) -> None:
    log = install.parent / "second.log"
    assert build_workspace(ROOT / "ros2_ws", install.parent, log=log) == install
    assert not log.exists()


def test_the_overlay_names_no_foreign_python_and_the_environment_is_left_alone(install: Path) -> None:
    overlay = install.parent / "prefix" / "share"
    exports = list(overlay.glob("*/cmake/export_*rosidl_generator_pyExport.cmake"))
    assert len(exports) > 5
    for export in exports:
        assert "/opt/python/" not in export.read_text()
        includes = next(line for line in export.read_text().splitlines() if "INTERFACE_INCLUDE" in line).split('"')[1]
        assert all(Path(folder).is_dir() for folder in includes.split(";"))


def test_a_changed_source_is_seen_and_left_overs_are_not(tmp_path: Path) -> None:
    (tmp_path / "src" / "__pycache__").mkdir(parents=True)
    (tmp_path / "src" / "a.py").write_text("1")
    first = sources_digest(tmp_path / "src")
    (tmp_path / "src" / "__pycache__" / "a.pyc").write_text("x")
    assert sources_digest(tmp_path / "src") == first
    (tmp_path / "src" / "a.py").write_text("2")
    assert sources_digest(tmp_path / "src") != first


@pytest.mark.parametrize("name", ["node", "player", "listener"])
def test_our_nodes_hide_no_private_attribute_of_rclpy(name: str) -> None:
    import rclpy

    def attributes(*files: Path) -> set[str]:
        return {found for file in files for found in re.findall(r"self\.(_\w+)", file.read_text())}

    package = Path(rclpy.__file__).parent
    inherited = attributes(package / "node.py", *(package / "lifecycle").glob("*.py"))
    source = ROOT / "ros2_ws" / "src" / "drivekd_ros" / "drivekd_ros" / f"{name}.py"
    assert not attributes(source) & inherited


def test_a_build_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    package = tmp_path / "ws" / "src" / "broken"
    package.mkdir(parents=True)
    (package / "package.xml").write_text(
        '<package format="3"><name>broken</name><version>0.0.0</version><description>x</description>'
        '<maintainer email="a@b.invalid">x</maintainer><license>x</license>'
        "<export><build_type>cmake</build_type></export></package>"
    )
    (package / "CMakeLists.txt").write_text('cmake_minimum_required(VERSION 3.16)\nmessage(FATAL_ERROR "no such luck")\n')
    out = tmp_path / "out"
    with pytest.raises(DrivekdError, match=r"(?s)colcon exit code.*build.log.*no such luck"):
        build_workspace(tmp_path / "ws", out, log=tmp_path / "build.log")
    assert not (out / "install" / STAMP).exists()
    with pytest.raises(UsageError, match="no built workspace"):
        ros_environment(out / "install")
    with pytest.raises(UsageError, match="is not a folder"):
        build_workspace(tmp_path / "nowhere", out, log=tmp_path / "build.log")


def test_environments_are_apart_local_and_carry_the_profile(install: Path) -> None:
    environments = [ros_environment(install) for _ in range(20)]
    assert len({environment["ROS_DOMAIN_ID"] for environment in environments}) > 5
    for environment in environments:
        assert 0 < int(environment["ROS_DOMAIN_ID"]) <= 100
        assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
        assert Path(environment["FASTRTPS_DEFAULT_PROFILES_FILE"]).is_file()
        assert environment["FASTRTPS_DEFAULT_PROFILES_FILE"] == environment["FASTDDS_DEFAULT_PROFILES_FILE"]


def test_frames_go_round_and_every_answer_names_its_frame_and_speed(bundle: Path, install: Path, frames: list[Path]) -> None:
    lines: list[str] = []
    answers = run_ros_demo(
        bundle, install, frames, ego_speed_mps=[1.0, 2.0, 3.0], count=9, rate_hz=5, on_line=lines.append, node=FAKE_NODE
    )
    assert len(answers) >= 9
    assert [json.loads(line)["text"] for line in lines] == [answer["text"] for answer in answers]
    assert len({answer["stamp_ns"] for answer in answers}) >= 3
    for answer in answers:
        frame = answer["frame"]
        assert f'"CAM_FRONT": {list(COLOURS[frame])}' in answer["text"]
        assert (answer["ego_speed_mps"], answer["ego_speed_measured"]) == (frame + 1.0, True)
        assert answer["frame_id"] == "CAM_FRONT"


def test_two_cameras_take_two_pictures_a_frame(bundle: Path, install: Path, frames: list[Path]) -> None:
    (bundle / "fake.json").write_text('{"cameras": ["CAM_FRONT", "CAM_BACK"]}')
    answers = run_ros_demo(bundle, install, frames[:2], cameras=["CAM_FRONT", "CAM_BACK"], rate_hz=5, node=FAKE_NODE)
    assert '"CAM_FRONT": [255, 0, 0], "CAM_BACK": [0, 255, 0]' in answers[0]["text"]


def test_a_video_is_played(bundle: Path, install: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    video = tmp_path / "green.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (0, 200, 0), np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    answers = run_ros_demo(bundle, install, video, rate_hz=5, node=FAKE_NODE)
    red, green, blue = json.loads(answers[0]["text"].split(" ", 1)[1])["seen"]["CAM_FRONT"]
    # 12 of 255: MPEG-4 at its default bit rate.
    assert (red, green, blue) == pytest.approx((0, 200, 0), abs=12)


def test_a_bundle_that_is_none_ends_the_round_at_once(install: Path, frames: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DrivekdError, match=r"(?s)the node ended with exit code 1.*cannot configure"):
        run_ros_demo(tmp_path / "nowhere", install, frames, node=FAKE_NODE)


def test_an_answer_that_does_not_come_is_named_and_nothing_is_left_running(
    bundle: Path, install: Path, frames: list[Path]
) -> None:
    (bundle / "fake.json").write_text('{"capabilities": ["perception"]}')
    with pytest.raises(DrivekdError, match=r"still missing: .*a typed answer for reasoning, a typed answer for planning"):
        run_ros_demo(bundle, install, frames, timeout_s=3, node=FAKE_NODE)
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(bundle) not in commands


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--image", "{folder}", "--topic", "/a"], 1, "no images"),
        (["--image", "{folder}/frame.png", "--topic", "/a"], 1, "cannot be read"),
        (["--video", "{folder}/film.mp4", "--topic", "/a"], 1, "video cannot be read"),
        (["--topic", "/a"], 2, "one of the arguments --image --video is required"),
        (["--image", "x", "--topic", "/a", "--rate", "0"], 2, "expected a number above 0"),
    ],
)
def test_the_player_says_what_it_cannot_play(install: Path, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    command = [sys.executable, "-m", "drivekd_ros.player", *(word.format(folder=tmp_path) for word in arguments)]
    done = subprocess.run(command, env=ros_environment(install), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_scripts_use_the_environments_python(install: Path) -> None:
    for name in ("node", "player", "listener"):
        script = install / "drivekd_ros" / "lib" / "drivekd_ros" / name
        assert script.read_text().startswith("#!/usr/bin/env python3\n")
    done = subprocess.run(
        [script, "--help"], env=ros_environment(install), capture_output=True, text=True, timeout=30, check=True
    )
    assert "Print typed answers" in done.stdout
