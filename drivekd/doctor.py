"""What this machine can run, and what to install for the rest. Imports nothing heavy and starts no engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil

from drivekd.run_directory import versions

Finding = list[str]  # what, found, what to do


def findings(*, ros: bool = False) -> list[Finding]:
    """One row a subject: what, what was found, what to do (empty when nothing)."""
    rows = [
        ["machine", f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}", ""],
        ["drivekd", ", ".join(f"{name} {value}" for name, value in versions().items() if name != "platform"), ""],
        _package("training", "torch", "pip install 'drivekd[train]'"),
        _package("export", "onnxscript", "pip install 'drivekd[export]'"),
        _onnxruntime(),
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


def _tensorrt() -> Finding:
    if importlib.util.find_spec("tensorrt") is not None:
        return ["TensorRT", f"tensorrt {importlib.metadata.version('tensorrt')}", ""]
    return ["TensorRT", "not installed", "JetPack and DriveOS bring it; on x86 pip install 'drivekd[trt]' from NVIDIA's index"]


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
