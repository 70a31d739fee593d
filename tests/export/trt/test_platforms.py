"""The table of JetPack and DRIVE OS, this machine's row in it, and the GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT

from drivekd.export.trt.platforms import (
    PLATFORM_HEADER,
    PLATFORMS,
    l4t_release,
    platform_of_l4t,
    platform_rows,
    precisions,
    this_board,
    version_numbers,
)
from drivekd.runtime.engine import cuda as gpu
from drivekd.runtime.engine.cuda import Device, this_device

JETPACK_6_2 = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
)


def test_the_table_is_complete() -> None:
    assert all(len(row) == len(PLATFORM_HEADER) and all(row) for row in platform_rows())
    assert len({platform.name for platform in PLATFORMS}) == len(PLATFORMS)


def test_the_documents_table_is_this_one() -> None:
    text = (ROOT / "docs" / "tensorrt.md").read_text()
    for row in [PLATFORM_HEADER, *platform_rows()]:
        assert f"| {' | '.join(row)} |" in text


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("35.1.0", "JetPack 5.0"),
        ("35.4.1", "JetPack 5.1"),
        ("36.3.0", "JetPack 6.0"),
        ("36.4.3", "JetPack 6.1, 6.2"),
        ("36.5.0", "JetPack 6.1, 6.2"),
        ("38.4.0", "JetPack 7.1"),
        ("39.2.1", "JetPack 7.2"),
    ],
)
def test_a_release_finds_its_row(release: str, name: str) -> None:
    found = platform_of_l4t(release)
    assert found is not None
    assert found.name == name


def test_an_unknown_release_has_no_row() -> None:
    assert platform_of_l4t("32.7.6") is None
    assert platform_of_l4t("41.0") is None
    assert l4t_release("no such line") is None


def test_what_a_gpu_computes_decides_the_types() -> None:
    assert precisions(87, (10, 3)) == ("FP32", "FP16", "INT8", "INT4")  # Orin
    assert "INT4" not in precisions(72, (10, 3))  # Xavier
    assert "INT4" not in precisions(87, (8, 6))
    assert {"FP8"} == set(precisions(89, (10, 3))) - set(precisions(86, (10, 3)))
    assert "FP4" in precisions(110, (10, 13))
    assert {platform.builds_engines for platform in PLATFORMS if platform.name in ("JetPack 6.0", "DRIVE OS 6.0.9")} == {False}


def test_versions_are_read_from_debian_and_python() -> None:
    assert version_numbers("10.3.0.30-1+cuda12.5") == (10, 3, 0, 30)
    assert version_numbers("10.16.2.10") > (10, 3)
    assert version_numbers("?") == ()


def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dpkg: str, release: str = JETPACK_6_2) -> tuple[str, str]:
    """this_board() on a machine with this release file and this answer of dpkg-query."""
    (tmp_path / "nv_tegra_release").write_text(release)
    tool = tmp_path / "dpkg-query"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{dpkg}END\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = this_board(tmp_path / "nv_tegra_release")
    return found.found, found.advice


def test_a_jetson_gets_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, advice = board(tmp_path, monkeypatch, "install ok installed 10.3.0.30-1+cuda12.5\nunknown ok not-installed \n")
    assert found.startswith(
        "JetPack 6.1, 6.2 (Jetson Linux 36.4.3): TensorRT 10.3.0.30-1+cuda12.5, opset <= 20, FP32, FP16, INT8, INT4"
    )
    assert "--trt" in advice or "python3.10" in advice


def test_a_jetson_without_tensorrt_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, advice = board(tmp_path, monkeypatch, "")
    assert "TensorRT not installed" in found
    assert advice.startswith("sudo apt install tensorrt")


def test_an_old_jetson_is_sent_to_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, advice = board(tmp_path, monkeypatch, "install ok installed 8.5.2-1+cuda11.4\n", JETPACK_6_2.replace("R36", "R35"))
    assert "older than 10.3: run the ONNX bundle on onnxruntime" in advice


def test_a_machine_that_is_no_jetson_is_told_so(tmp_path: Path) -> None:
    assert this_board(tmp_path / "nv_tegra_release").found.startswith("no Jetson here")


# --- the GPU --------------------------------------------------------------------------------------------------------

FAKE_DRIVER = """
extern "C" {
int cuInit(unsigned) { return INIT; }
int cuDeviceGet(int *device, int ordinal) { *device = 5; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) { __builtin_strncpy(name, device == 5 ? "Orin" : "?", size); return 0; }
int cuDeviceGetAttribute(int *value, int what, int device) { *value = what == 75 ? 8 : what == 76 ? 7 : 0; return device != 5; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
}
"""


def fake_driver(folder: Path, init: int) -> str:
    """A libcuda of one Orin, compiled: the calls are the real ones."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    (folder / "cuda.cpp").write_text(FAKE_DRIVER)
    library = folder / f"libcuda{init}.so"
    subprocess.run([compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o", str(library), str(folder / "cuda.cpp")], check=True)
    return str(library)


def test_the_driver_is_asked_for_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "version"
    monkeypatch.setattr(gpu, "DRIVER_VERSION", version)
    library = fake_driver(tmp_path, 0)
    assert this_device(library) == Device("Orin", 87, "CUDA 12.6")
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n")
    assert this_device(library) == Device("Orin", 87, "540.4.0, CUDA 12.6")


def test_a_driver_without_a_gpu_and_no_driver_at_all_are_no_gpu(tmp_path: Path) -> None:
    assert this_device(fake_driver(tmp_path, 100)) is None  # CUDA_ERROR_NO_DEVICE
    assert this_device("libthere-is-none.so.1") is None
