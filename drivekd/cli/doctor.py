"""What this machine can run, and what to install for the rest. Imports nothing heavy and starts no engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil

from drivekd.export.trt.platforms import precisions, this_board
from drivekd.files import versions
from drivekd.runtime.engine.cuda import this_device

NEWEST_TENSORRT = (11,)
Finding = list[str]  # what, found, what to do


def findings(*, ros: bool = False) -> list[Finding]:
    """One row a subject: what, what was found, what to do (empty when nothing)."""
    rows = [
        ["machine", f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}", ""],
        ["drivekd", ", ".join(f"{name} {value}" for name, value in versions().items() if name != "platform"), ""],
        _package("training", "torch", "pip install 'drivekd[train]'"),
        _package("export", "onnxscript", "pip install 'drivekd[export]'"),
        _onnxruntime(),
        _gpu(),
        _board(),
        _tensorrt(),
        _package("TensorRT-RTX", "tensorrt_rtx", "pip install 'drivekd[rtx]' to compile graphs ahead of time, without a GPU"),
    ]
    return rows + (_ros() if ros else [])


def _package(subject: str, module: str, advice: str) -> Finding:
    present = importlib.util.find_spec(module) is not None
    return [subject, "installed" if present else "not installed", "" if present else advice]


def _onnxruntime() -> Finding:
    if importlib.util.find_spec("onnxruntime") is None:
        return ["onnxruntime", "not installed", "pip install 'drivekd[ort]', or 'drivekd[ort-gpu]' with CUDA; never both"]
    import onnxruntime

    installed = {(dist.metadata["Name"] or "").lower() for dist in importlib.metadata.distributions()}
    both = {"onnxruntime", "onnxruntime-gpu"} <= installed
    advice = "both onnxruntime and onnxruntime-gpu are installed in one folder: remove both, install one" if both else ""
    return ["onnxruntime", ", ".join(onnxruntime.get_available_providers()), advice]


def _gpu() -> Finding:
    device = this_device()
    if device is None:
        return ["GPU", "no NVIDIA GPU or no driver", ""]
    major, minor = divmod(device.capability, 10)
    types = ", ".join(precisions(device.capability, NEWEST_TENSORRT))
    return ["GPU", f"{device.name}, SM {major}.{minor}, driver {device.driver}; with a new TensorRT: {types}", ""]


def _board() -> Finding:
    """This machine's row in the table of JetPack releases."""
    board = this_board()
    return ["JetPack", board.found, board.advice]


def _tensorrt() -> Finding:
    if importlib.util.find_spec("tensorrt") is None:
        return [
            "TensorRT",
            "not installed",
            "JetPack and DriveOS bring it; on x86 pip install 'drivekd[trt]' from NVIDIA's index",
        ]
    try:
        return ["TensorRT", f"tensorrt {importlib.metadata.version('tensorrt')}", ""]
    except importlib.metadata.PackageNotFoundError:  # a system package may come without Python's metadata
        return ["TensorRT", "installed", ""]


def _ros() -> list[Finding]:
    compiler = shutil.which("c++") or shutil.which("g++")
    colcon = importlib.util.find_spec("colcon_core") is not None or shutil.which("colcon") is not None
    distro = os.environ.get("ROS_DISTRO", "from wheels" if importlib.util.find_spec("ament_package") else "none sourced")
    advice = "source /opt/ros/<distro>/setup.bash, or on x86_64: pip install 'drivekd[ros-test]'"
    return [
        _package("rclpy", "rclpy", advice),
        ["ROS distribution", distro, ""],
        ["colcon", "found" if colcon else "not found", "" if colcon else "pip install colcon-common-extensions"],
        ["C++ compiler", compiler or "not found", "" if compiler else "apt-get install g++"],
    ]
