"""doctor says what is there and, where something is missing, what to do; it never fails on a poor machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import pytest

from drivekd.cli import doctor
from drivekd.export.trt.platforms import BoardFinding
from drivekd.runtime.engine.cuda import Device

Hide = Callable[..., None]


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Make modules look as if they were not installed."""
    find = importlib.util.find_spec

    def call(*modules: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else find(name))

    return call


def row(subject: str, *, ros: bool = False) -> list[str]:
    (found,) = [finding for finding in doctor.findings(ros=ros) if finding[0] == subject]
    return found


def test_every_finding_has_three_cells_and_a_subject_of_its_own() -> None:
    findings = doctor.findings(ros=True)
    assert all(len(finding) == 3 and finding[0] and finding[1] for finding in findings)
    assert len({finding[0] for finding in findings}) == len(findings)


def test_ros_is_asked_for() -> None:
    assert {finding[0] for finding in doctor.findings(ros=True)} - {finding[0] for finding in doctor.findings()} == {
        "rclpy",
        "ROS distribution",
        "colcon",
        "C++ compiler",
    }


def test_what_is_installed_needs_nothing() -> None:
    assert row("training")[1:] == ["installed", ""]
    assert "CPUExecutionProvider" in row("onnxruntime")[1]


@pytest.mark.parametrize(
    ("module", "subject", "advice"),
    [
        ("torch", "training", "pip install 'drivekd[train]'"),
        ("onnxscript", "export", "pip install 'drivekd[export]'"),
        ("onnxruntime", "onnxruntime", "drivekd[ort]"),
        ("tensorrt", "TensorRT", "drivekd[trt]"),
        ("tensorrt_rtx", "TensorRT-RTX", "drivekd[rtx]"),
    ],
)
def test_what_is_missing_comes_with_advice(hide: Hide, module: str, subject: str, advice: str) -> None:
    hide(module)
    _, found, what_to_do = row(subject)
    assert found == "not installed"
    assert advice in what_to_do


def test_a_machine_without_ros_gets_advice(hide: Hide, monkeypatch: pytest.MonkeyPatch) -> None:
    hide("rclpy", "colcon_core", "ament_package")
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert row("rclpy", ros=True)[1] == "not installed"
    assert row("ROS distribution", ros=True)[1] == "none sourced"
    assert "colcon" in row("colcon", ros=True)[2]
    assert "apt-get install g++" in row("C++ compiler", ros=True)[2]


def test_two_onnxruntimes_in_one_folder_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def __init__(self, name: str) -> None:
            self.metadata = {"Name": name}

    both = [Distribution("onnxruntime"), Distribution("onnxruntime-gpu")]
    monkeypatch.setattr(doctor.importlib.metadata, "distributions", lambda: both)
    assert "remove both, install one" in row("onnxruntime")[2]


def test_the_gpu_and_what_it_computes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "this_device", lambda: Device("Orin", 87, "540.4.0, CUDA 12.6"))
    found = row("GPU")[1]
    assert found.startswith("Orin, SM 8.7, driver 540.4.0, CUDA 12.6")
    assert found.endswith("FP32, FP16, INT8, INT4")
    monkeypatch.setattr(doctor, "this_device", lambda: None)
    assert row("GPU")[1:] == ["no NVIDIA GPU or no driver", ""]


def test_a_jetson_prints_its_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "this_board", lambda: BoardFinding("JetPack 6.1, 6.2 ...", "build there"))
    assert row("JetPack") == ["JetPack", "JetPack 6.1, 6.2 ...", "build there"]


def test_a_tensorrt_without_pythons_metadata_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system package may come so."""
    find = importlib.util.find_spec
    spec = ModuleSpec("tensorrt", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "tensorrt" else find(name))
    assert row("TensorRT")[1].split()[0] in ("installed", "tensorrt")
