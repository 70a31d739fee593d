"""One line of NVIDIA's `tegrastats`, as Jetson Orin and Thor print it under JetPack 5 to 7.

Every release prints other fields, so each is looked for by itself and what is missing stays missing:

    RAM 8353/125749MB           used / total
    CPU [90%@2601,off]          load and MHz of each core; also CPU [90%,off]@2601
    GR3D_FREQ 12%@[1300,1300]   GPU load and the MHz of its clusters; Thor prints @[...] without the load, or nothing at all
    EMC_FREQ 3%@3199            memory controller
    cpu@52.9C/52.9C             temperature now (/ highest); -256 = that part is switched off
    VDD_GPU 1962mW/1962mW/...   power now / average / highest; a small negative one is the sensor's offset
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
CPU = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d+))?")
CORE = re.compile(r"(\d+)%(?:@(\d+))?")
ENGINE = r"\b{name} (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?"
TEMPERATURE = re.compile(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b")
RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW\b")
SWITCHED_OFF_C = -256.0
NOT_CONNECTED = "NC"

# What feeds the whole module, by board: Thor's input, Orin NX's and Nano's input, and of AGX Orin, which has no such meter, the
# three rails that NVIDIA adds up (VDDQ_VDD2_1V8AO is a part of VIN_SYS_5V0).
INPUT_RAILS = (("VIN",), ("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


@dataclass(frozen=True)
class TegraSample:
    """ram_mb: used, total. cpu_mhz: of the cores that are on. gpu_mhz: of each cluster. None and () = the line does not say."""

    ram_mb: tuple[int, int] | None
    cpu_load_percent: tuple[int, ...]
    cpu_mhz: tuple[int, ...]
    gpu_load_percent: int | None
    gpu_mhz: tuple[int, ...]
    memory_mhz: int | None
    temperatures_c: Mapping[str, float]
    rails_mw: Mapping[str, int]

    @property
    def input_rails(self) -> tuple[str, ...]:
        """Rails whose sum is the module's power; () when this line has none of the known sets."""
        return next((rails for rails in INPUT_RAILS if all(rail in self.rails_mw for rail in rails)), ())

    @property
    def power_mw(self) -> int | None:
        """Of the whole module; None where the line has none of the known rails."""
        return sum(self.rails_mw[rail] for rail in self.input_rails) if self.input_rails else None


def parse_tegrastats(line: str) -> TegraSample:
    """Read one line; any text is allowed, and what it does not hold is None or empty."""
    ram = RAM.search(line)
    loads, clocks = _cores(line)
    gpu_load, gpu_mhz = _engine(line, "GR3D_FREQ")
    _, memory_mhz = _engine(line, "EMC_FREQ")
    temperatures = {name.lower(): float(value) for name, value in TEMPERATURE.findall(line)}
    return TegraSample(
        ram_mb=(int(ram[1]), int(ram[2])) if ram else None,
        cpu_load_percent=loads,
        cpu_mhz=clocks,
        gpu_load_percent=gpu_load,
        gpu_mhz=gpu_mhz,
        memory_mhz=memory_mhz[0] if memory_mhz else None,
        temperatures_c={name: value for name, value in temperatures.items() if value > SWITCHED_OFF_C},
        rails_mw={name: int(value) for name, value in RAIL.findall(line) if name != NOT_CONNECTED},
    )


def _cores(line: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Load in percent and MHz of the cores that are on."""
    found = CPU.search(line)
    if found is None:
        return (), ()
    cores = [(int(core[1]), core[2] or found[2]) for core in CORE.finditer(found[1])]
    return tuple(load for load, _ in cores), tuple(int(clock) for _, clock in cores if clock)


def _engine(line: str, name: str) -> tuple[int | None, tuple[int, ...]]:
    found = re.search(ENGINE.format(name=name), line)
    if found is None:
        return None, ()
    clocks = tuple(int(clock) for clock in (found[2] or "").split(",") if clock)
    return None if found[1] is None else int(found[1]), clocks
