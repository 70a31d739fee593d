"""What the machine's own meters say while something is measured: power mode, clocks, temperature, watts.

A speed means little without them: a Jetson answers several times slower in its 15 W mode than in MAXN. Where `tegrastats` is
installed (Jetson) it is read; elsewhere the kernel's files are (thermal zones, cpufreq, RAPL energy counters, which only root may
read). What a machine does not tell is None.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .tegrastats import TegraSample, parse_tegrastats

INTERVAL_S = 0.5
NVPMODEL_TIMEOUT_S = 5.0
POWER_MODE = re.compile(r"NV Power Mode:\s*(\S+)")


@dataclass(frozen=True)
class Reading:
    """One moment. cpu_mhz, gpu_mhz: of every core or cluster that is on. hottest: a sensor's name and its °C."""

    cpu_mhz: tuple[int, ...] = ()
    gpu_mhz: tuple[int, ...] = ()
    hottest: tuple[str, float] | None = None
    watts: float | None = None


@dataclass(frozen=True)
class PowerReport:
    """A measurement's worth of readings. cpu_mhz, gpu_mhz: lowest and highest seen. hottest: the highest temperature seen, °C.
    watts: mean; meter: what they are of. power_mode: nvpmodel's, elsewhere the CPU's frequency governor."""

    readings: int
    power_mode: str | None = None
    cpu_mhz: tuple[int, int] | None = None
    gpu_mhz: tuple[int, int] | None = None
    hottest: tuple[str, float] | None = None
    watts: float | None = None
    watts_peak: float | None = None
    meter: str | None = None

    def rows(self) -> list[list[str]]:
        """What is known, for a table."""
        named = (("power mode", self.power_mode), ("CPU clock", _span(self.cpu_mhz)), ("GPU clock", _span(self.gpu_mhz)))
        rows = [[name, value] for name, value in named if value is not None]
        if self.hottest is not None:
            rows.append(["hottest", f"{self.hottest[1]:.1f} °C ({self.hottest[0]})"])
        if self.watts is not None:
            rows.append(["power", f"{self.watts:.1f} W mean, {self.watts_peak:.1f} W peak ({self.meter})"])
        return rows or [["power, clocks, temperature", "this machine does not tell"]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class PowerMeter:
    """Reads the meters every half second within the block.

    sysfs, tegrastats, nvpmodel: where they are; a command that is None is not there.

        with PowerMeter() as meter:
            work()
        meter.report()
    """

    def __init__(
        self, *, sysfs: Path = Path("/sys"), tegrastats: str | None = "tegrastats", nvpmodel: str | None = "nvpmodel"
    ) -> None:
        self._sysfs = sysfs
        self._tegrastats = shutil.which(tegrastats) if tegrastats else None
        self._nvpmodel = shutil.which(nvpmodel) if nvpmodel else None
        self._energy = _EnergyCounter(sysfs)
        self._readings: list[Reading] = []
        self._meter: str | None = None
        self._ended = threading.Event()
        self._child: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PowerMeter:
        self._energy.watts_since_last()
        if self._tegrastats is not None:
            command = [self._tegrastats, "--interval", str(round(INTERVAL_S * 1000))]
            self._child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace", encoding="utf-8"
            )
        self._thread = threading.Thread(target=self._follow if self._child else self._poll, daemon=True, name="power-meter")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ended.set()
        if self._child is not None:
            self._child.terminate()
            self._child.wait()
        assert self._thread is not None
        self._thread.join()

    def report(self) -> PowerReport:
        """Of the readings so far."""
        watts = [reading.watts for reading in self._readings if reading.watts is not None]
        temperatures = [reading.hottest for reading in self._readings if reading.hottest is not None]
        return PowerReport(
            readings=len(self._readings),
            power_mode=_power_mode(self._nvpmodel) or _governor(self._sysfs),
            cpu_mhz=_extremes([clock for reading in self._readings for clock in reading.cpu_mhz]),
            gpu_mhz=_extremes([clock for reading in self._readings for clock in reading.gpu_mhz]),
            hottest=max(temperatures, key=lambda named: named[1], default=None),
            watts=sum(watts) / len(watts) if watts else None,
            watts_peak=max(watts, default=None),
            meter=self._meter if watts else None,
        )

    def _follow(self) -> None:
        """Lines of tegrastats until it ends."""
        assert self._child is not None and self._child.stdout is not None
        for line in self._child.stdout:
            sample = parse_tegrastats(line)
            self._meter = " + ".join(sample.input_rails) or self._meter
            self._readings.append(reading_of(sample))

    def _poll(self) -> None:
        """The kernel's files until the block ends; the last reading closes the last interval."""
        self._meter = "RAPL, CPU package"
        while True:
            ended = self._ended.wait(INTERVAL_S)
            self._readings.append(
                Reading(
                    cpu_mhz=_cpu_clocks(self._sysfs), hottest=_hottest_zone(self._sysfs), watts=self._energy.watts_since_last()
                )
            )
            if ended:
                return


def reading_of(sample: TegraSample) -> Reading:
    """A line of tegrastats as a reading."""
    hottest = max(sample.temperatures_c.items(), key=lambda named: named[1], default=None)
    watts = None if sample.power_mw is None else sample.power_mw / 1000
    return Reading(sample.cpu_mhz, sample.gpu_mhz, hottest, watts)


class _EnergyCounter:
    """RAPL counts microjoules since boot, package by package, and starts again at its own maximum."""

    def __init__(self, sysfs: Path) -> None:
        self._files = sorted((sysfs / "class" / "powercap").glob("intel-rapl:[0-9]/energy_uj"))  # AMD's have that name too
        self._last = self._joules(), time.monotonic()

    def watts_since_last(self) -> float | None:
        before, before_s = self._last
        self._last = now, now_s = self._joules(), time.monotonic()
        if before is None or now is None or now < before or now_s <= before_s:
            return None
        return (now - before) / (now_s - before_s)

    def _joules(self) -> float | None:
        counts = [_number(file) for file in self._files]
        known = [count for count in counts if count is not None]
        return sum(known) / 1e6 if known and len(known) == len(counts) else None


def _hottest_zone(sysfs: Path) -> tuple[str, float] | None:
    zones = []
    for zone in (sysfs / "class" / "thermal").glob("thermal_zone*"):
        millidegrees = _number(zone / "temp")
        if millidegrees is not None:
            zones.append((_text(zone / "type") or zone.name, millidegrees / 1000))
    return max(zones, key=lambda named: named[1], default=None)


def _cpu_clocks(sysfs: Path) -> tuple[int, ...]:
    files = (sysfs / "devices" / "system" / "cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    return tuple(khz // 1000 for file in files if (khz := _number(file)) is not None)


def _governor(sysfs: Path) -> str | None:
    governor = _text(sysfs / "devices" / "system" / "cpu" / "cpu0" / "cpufreq" / "scaling_governor")
    return f"CPU governor {governor}" if governor else None


def _power_mode(nvpmodel: str | None) -> str | None:
    """The name that `nvpmodel -q` prints, such as MAXN or 25W; None when it does not tell."""
    if nvpmodel is None:
        return None
    try:
        done = subprocess.run(
            [nvpmodel, "-q"], capture_output=True, text=True, timeout=NVPMODEL_TIMEOUT_S, encoding="utf-8", errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = POWER_MODE.search(done.stdout)
    return found[1] if found else None


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def _text(file: Path) -> str | None:
    """A kernel file's one line; None where there is none, or where it may not or cannot be read (a sensor that sleeps)."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _extremes(values: Sequence[int]) -> tuple[int, int] | None:
    return (min(values), max(values)) if values else None


def _span(extremes: tuple[int, int] | None) -> str | None:
    if extremes is None:
        return None
    low, high = extremes
    return f"{high} MHz" if low == high else f"{low} to {high} MHz"
