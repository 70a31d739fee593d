"""What each JetPack and DriveOS can take, and which of them this machine is. Imports nothing heavy and starts no engine.

Versions are NVIDIA's: JetPack's and DRIVE OS's release notes, and TensorRT's support matrix and ONNX operator list of the same
version. None of these machines was at hand when this table was written.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MIN_TENSORRT = (10, 3)  # strongly typed networks, INT64 inputs and INT4 weights together; JetPack 6.1's and 6.2's version
TEGRA_RELEASE = Path("/etc/nv_tegra_release")
TENSORRT_PACKAGES = ("libnvinfer10", "libnvinfer8", "libnvinfer11", "tensorrt")


@dataclass(frozen=True)
class Platform:
    """One release. l4t: its first Jetson Linux, "" on DRIVE OS. capabilities: of its boards' GPUs, 87 = SM 8.7.

    max_opset: what its TensorRT documents; newer graphs often parse, untested. python: of its system packages.
    """

    name: str
    l4t: str
    tensorrt: str
    cuda: str
    max_opset: int
    python: str
    capabilities: tuple[int, ...]

    @property
    def tensorrt_version(self) -> tuple[int, ...]:
        """As numbers, to compare."""
        return version_numbers(self.tensorrt)

    @property
    def builds_engines(self) -> bool:
        """Whether `drivekd export BUNDLE --trt` works there."""
        return self.tensorrt_version >= MIN_TENSORRT

    def precisions(self) -> str:
        """What all of its boards compute and its TensorRT reads; then what only the newest of them does."""
        first, last = (precisions(number, self.tensorrt_version) for number in (min(self.capabilities), max(self.capabilities)))
        more = [name for name in last if name not in first]
        return ", ".join(first) + (f"; Thor also {', '.join(more)}" if more else "")

    @property
    def advice(self) -> str:
        """For the person in front of it: precisions to choose there, or what is missing."""
        if self.builds_engines:
            return "int8 or fp16 for vision, int4 or fp16 for the decoder; build there: drivekd export BUNDLE --trt"
        needed = ".".join(map(str, MIN_TENSORRT))
        return (
            f"its TensorRT {self.tensorrt} is older than {needed}: run the ONNX bundle on onnxruntime, or install a newer release"
        )


XAVIER, ORIN, THOR_CUDA_12, THOR = 72, 87, 101, 110  # CUDA 13 counts Thor as 11.0, CUDA 12 as 10.1

PLATFORMS = (
    Platform("JetPack 5.0", "35.1", "8.4.1", "11.4", 17, "3.8", (XAVIER, ORIN)),
    Platform("JetPack 5.1", "35.2", "8.5.2", "11.4", 17, "3.8", (XAVIER, ORIN)),
    Platform("JetPack 6.0", "36.3", "8.6.2", "12.2", 17, "3.10", (ORIN,)),
    Platform("JetPack 6.1, 6.2", "36.4", "10.3", "12.6", 20, "3.10", (ORIN,)),
    Platform("JetPack 7.0", "38.2", "10.13", "13.0", 24, "3.12", (THOR,)),
    Platform("JetPack 7.1", "38.4", "10.13.3", "13.0", 24, "3.12", (THOR,)),
    Platform("JetPack 7.2", "39.2", "10.16", "13.2", 24, "3.12", (ORIN, THOR)),
    Platform("DRIVE OS 6.0.9", "", "8.6.12", "11.4", 17, "3.8", (ORIN,)),
    Platform("DRIVE OS 7.0.3", "", "10.10.10", "12.8", 22, "3.12", (THOR_CUDA_12,)),
)


def precisions(capability: int, tensorrt: tuple[int, ...]) -> tuple[str, ...]:
    """Data types that a GPU computes and a TensorRT reads: NVIDIA's hardware and precision matrix. BF16 is left out: no bundle
    has it."""
    found = ["FP32", "FP16", "INT8"]
    if capability >= 80 and tensorrt >= (10,):
        found.append("INT4")  # weights only
    if capability >= 89 and tensorrt >= (9,):
        found.append("FP8")
    if capability >= 100 and tensorrt >= (10, 8):
        found.append("FP4")
    return tuple(found)


def version_numbers(text: str) -> tuple[int, ...]:
    """ "10.3.0.30-1+cuda12.5" -> (10, 3, 0, 30)."""
    start = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, start[0].split("."))) if start else ()


def l4t_release(text: str) -> str | None:
    """The first line of /etc/nv_tegra_release -> "36.4.3"."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def platform_of_l4t(release: str) -> Platform | None:
    """The newest platform of the table with this release's major number that is not newer than it."""
    number = version_numbers(release)
    older = [p for p in PLATFORMS if p.l4t and version_numbers(p.l4t)[0] == number[0] and version_numbers(p.l4t) <= number]
    return max(older, key=lambda p: version_numbers(p.l4t), default=None)


def platform_rows() -> list[list[str]]:
    """The table under PLATFORM_HEADER."""
    return [
        [p.name, p.tensorrt, p.cuda, str(p.max_opset), p.precisions(), p.python, "yes" if p.builds_engines else "no"]
        for p in PLATFORMS
    ]


PLATFORM_HEADER = ["release", "TensorRT", "CUDA", "opset <=", "data types", "Python", "engines"]


@dataclass(frozen=True)
class BoardFinding:
    """This machine in the table. found: for people. advice: what to do, "" = nothing."""

    found: str
    advice: str


def this_board(tegra_release: Path = TEGRA_RELEASE) -> BoardFinding:
    """The row of this machine, or that it is no Jetson. Reads files and asks dpkg; never raises on a poor machine."""
    if not tegra_release.is_file():
        return BoardFinding(f"no Jetson here ({platform.machine()})", "")
    release = l4t_release(tegra_release.read_text(encoding="utf-8", errors="replace"))
    row = platform_of_l4t(release) if release else None
    installed = _installed_tensorrt()
    if row is None:
        names = ", ".join(p.name for p in PLATFORMS if p.l4t)
        return BoardFinding(f"Jetson Linux {release}: not in the table ({names}); TensorRT {installed}", "")
    found = (
        f"{row.name} (Jetson Linux {release}): TensorRT {installed}, opset <= {row.max_opset}, {row.precisions()}, "
        f"Python {row.python}"
    )
    return BoardFinding(found, _python_advice(row) if installed != "not installed" else _INSTALL + _python_advice(row))


_INSTALL = "sudo apt install tensorrt python3-libnvinfer. "


def _python_advice(row: Platform) -> str:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if row.builds_engines and here != row.python:
        return f"this is Python {here}, its TensorRT is for {row.python}: python{row.python} -m venv --system-site-packages"
    return row.advice


def _installed_tensorrt() -> str:
    """The TensorRT that dpkg knows, "not installed" without one or without dpkg."""
    command = ["dpkg-query", "--show", "--showformat=${Status} ${Version}\\n", *TENSORRT_PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8", errors="replace")
        answer = done.stdout  # fails when one is unknown
    except FileNotFoundError:
        return "not installed"
    found = re.findall(r"^install ok installed (\S+)$", answer, re.MULTILINE)
    return max(found, key=version_numbers, default="not installed")
