"""tegrastats as real boards print it, and the meters around a measurement."""

from __future__ import annotations

import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.runtime.meters.power import PowerMeter, PowerReport
from drivekd.runtime.meters.tegrastats import TegraSample, parse_tegrastats

# Recorded lines, as owners of these boards posted them publicly.
AGX_ORIN_JETPACK_5 = (
    "10-16-2023 10:59:22 RAM 1205/30623MB (lfb 6429x4MB) SWAP 0/15311MB (cached 0MB) CPU [0%@729,0%@729,1%@729,0%@729,"
    "0%@729,0%@730,0%@730,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@204 GR3D_FREQ 0%@114 GR3D2_FREQ 0%@114 NVJPG1 "
    "729 VIC_FREQ 729 APE 233 CV0@-256C CPU@43.5C Tdiode@32.5C SOC2@40.062C SOC0@40.5C CV1@-256C GPU@38.156C SOC1@39.125C "
    "CV2@-256C VDD_GPU_SOC 4788mW/4788mW VDD_CPU_CV 798mW/798mW VIN_SYS_5V0 3842mW/3842mW NC 0mW/0mW VDDQ_VDD2_1V8AO "
    "707mW/707mW NC 0mW/0mW"
)
AGX_ORIN_JETPACK_6 = (
    "03-17-2024 18:54:10 RAM 10239/62841MB (lfb 442x4MB) SWAP 1/31421MB (cached 0MB) CPU [0%@1728,0%@1728,0%@1728,0%@1728,"
    "0%@1420,0%@1420,0%@1420,0%@1420,off,off,off,off] GR3D_FREQ 0% cpu@37.5C tboard@27C soc2@34.562C tdiode@27.5C "
    "soc0@34.531C tj@37.5C soc1@33.656C VDD_GPU_SOC 1592mW/1592mW VDD_CPU_CV -398mW/-398mW VIN_SYS_5V0 2624mW/2624mW "
    "VDDQ_VDD2_1V8AO 403mW/403mW"
)
AGX_ORIN_JETPACK_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201,4%@2201,14%@2201,30%@2201,18%@2201,10%@2201,"
    "10%@2201,33%@2201,7%@2201,5%@2201,27%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDEC0 off NVJPG0 "
    "off NVJPG1 off VIC off OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.968C/52.968C soc2@48.406C/48.406C "
    "soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 "
    "5500mW/5500mW/5500mW"
)
ORIN_NANO = (
    "11-30-2025 13:26:01 RAM 2461/7620MB (lfb 3x2MB) SWAP 1243/3810MB (cached 5MB) CPU [19%@729,14%@729,22%@729,8%@729,"
    "15%@729,17%@729] EMC_FREQ 4%@2133 GR3D_FREQ 0%@[305] NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 "
    "cpu@46.531C soc2@47.312C soc0@46.593C gpu@48.218C tj@48.843C soc1@48.843C VDD_IN 5704mW/5704mW VDD_CPU_GPU_CV "
    "831mW/831mW VDD_SOC 1624mW/1624mW"
)
THOR_JETPACK_7 = (
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,1%@972,0%@972,"
    "0%@972,0%@972,0%@972,8%@972,0%@972,0%@972] EMC_FREQ 0%@2750 GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 NVENC1_FREQ "
    "@314 NVDEC0_FREQ @314 NVDEC1_FREQ @314 NVJPG0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 cpu@37.343C "
    "tj@38.875C soc012@37.468C gpu@38.875C soc345@37.406C VDD_GPU 1962mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 "
    "5635mW/5635mW VIN 19780mW/19780mW"
)
THOR_JETPACK_7_2 = (
    "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@972,0%@972,0%@972,"
    "0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,2%@972] cpu@60.406C tj@63.281C soc012@58.468C "
    "gpu@62.906C soc345@63.281C VDD_GPU 37528mW/37528mW/37528mW VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW VIN_SYS_5V0 "
    "18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW"
)
RECORDED = {
    "AGX Orin, JetPack 5": AGX_ORIN_JETPACK_5,
    "AGX Orin, JetPack 6": AGX_ORIN_JETPACK_6,
    "AGX Orin, JetPack 7": AGX_ORIN_JETPACK_7,
    "Orin Nano": ORIN_NANO,
    "Thor, JetPack 7": THOR_JETPACK_7,
    "Thor, JetPack 7.2": THOR_JETPACK_7_2,
}


@pytest.mark.parametrize(
    ("board", "ram_mb", "cores", "gpu", "hottest", "rails", "power_mw"),
    [
        ("AGX Orin, JetPack 5", (1205, 30623), 12, (0, (114,)), ("cpu", 43.5), 3, 4788 + 798 + 3842),
        ("AGX Orin, JetPack 6", (10239, 62841), 8, (0, ()), ("cpu", 37.5), 3, 1592 - 398 + 2624),
        ("AGX Orin, JetPack 7", (20642, 62817), 12, (12, (1300, 1300)), ("cpu", 52.968), 3, 5139 + 3268 + 5500),
        ("Orin Nano", (2461, 7620), 6, (0, (305,)), ("tj", 48.843), 1, 5704),
        ("Thor, JetPack 7", (105265, 125772), 14, (None, (314, 314, 314)), ("tj", 38.875), 1, 19780),
        ("Thor, JetPack 7.2", (36529, 125749), 14, (None, ()), ("tj", 63.281), 1, 87426),
    ],
)
def test_recorded_lines(
    board: str,
    ram_mb: tuple[int, int],
    cores: int,
    gpu: tuple[int | None, tuple[int, ...]],
    hottest: tuple[str, float],
    rails: int,
    power_mw: int,
) -> None:
    sample = parse_tegrastats(RECORDED[board])
    assert sample.ram_mb == ram_mb
    assert len(sample.cpu_load_percent) == len(sample.cpu_mhz) == cores, "cores that are off are not idle ones"
    assert (sample.gpu_load_percent, sample.gpu_mhz) == gpu
    assert sample.temperatures_c[hottest[0]] == hottest[1] == max(sample.temperatures_c.values())
    assert len(sample.input_rails) == rails
    assert sample.power_mw == power_mw


def test_parts_that_are_off_or_not_connected_are_left_out() -> None:
    sample = parse_tegrastats(AGX_ORIN_JETPACK_5)
    assert not any(name.startswith("cv") for name in sample.temperatures_c), "-256 °C is a sensor that sleeps"
    assert "NC" not in sample.rails_mw
    assert sample.rails_mw["VDDQ_VDD2_1V8AO"] == 707, "known, but a part of VIN_SYS_5V0: not added twice"
    assert parse_tegrastats(THOR_JETPACK_7).memory_mhz == 2750
    assert parse_tegrastats(THOR_JETPACK_7_2).memory_mhz is None


def test_one_clock_for_all_cores() -> None:
    sample = parse_tegrastats("CPU [3%,5%,off]@2601 EMC_FREQ @4266")
    assert (sample.cpu_load_percent, sample.cpu_mhz, sample.memory_mhz) == ((3, 5), (2601, 2601), 4266)


FIELDS = sorted({word for line in RECORDED.values() for word in line.split()})


@given(st.lists(st.sampled_from(FIELDS) | st.text(string.printable, max_size=12)).map(" ".join))
def test_any_text_is_read_without_failing(line: str) -> None:
    sample = parse_tegrastats(line)
    assert sample.power_mw is None or sample.input_rails


@pytest.mark.parametrize("line", RECORDED.values(), ids=RECORDED.keys())
def test_fields_are_found_by_themselves(line: str) -> None:
    """Every release leaves something out: what remains is read as before."""
    whole = parse_tegrastats(line)
    for field in ("RAM", "CPU", "GR3D_FREQ"):
        sample = parse_tegrastats(line.replace(f"{field} ", f"{field}_ "))
        assert sample.temperatures_c == whole.temperatures_c
        assert sample.rails_mw == whole.rails_mw
    assert parse_tegrastats("") == TegraSample(None, (), (), None, (), None, {}, {})


# --- the meter ------------------------------------------------------------------------------------------------------


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def wait_for(condition: object, limit_s: float = 10) -> None:
    until = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)


def test_on_a_jetson_its_own_tools_are_read(tmp_path: Path) -> None:
    tegrastats = script(
        tmp_path / "tegrastats", f"echo '{THOR_JETPACK_7}'\necho '{THOR_JETPACK_7_2}'\necho $$ >&2\nexec sleep 60"
    )
    nvpmodel = script(tmp_path / "nvpmodel", "echo 'NV Power Mode: 120W'\necho 1")
    with PowerMeter(sysfs=tmp_path, tegrastats=tegrastats, nvpmodel=nvpmodel) as meter:
        wait_for(lambda: meter.report().readings == 2)
        child = meter._child
    assert child is not None
    assert child.returncode is not None, "a tegrastats that goes on after the block is a leak"
    report = meter.report()
    assert report.power_mode == "120W"
    assert report.cpu_mhz == (972, 972)
    assert report.gpu_mhz == (314, 314)
    assert report.hottest == ("tj", 63.281)
    assert (report.watts, report.watts_peak, report.meter) == (pytest.approx((19.78 + 87.426) / 2), 87.426, "VIN")
    assert ["power", "53.6 W mean, 87.4 W peak (VIN)"] in report.rows()


def test_elsewhere_the_kernels_files_are_read(tmp_path: Path) -> None:
    cpu, zone, rapl = "devices/system/cpu", "class/thermal/thermal_zone", "class/powercap/intel-rapl:0"
    write(
        tmp_path,
        **{f"{cpu}/cpu{i}/cpufreq/scaling_cur_freq": f"{mhz}000\n" for i, mhz in enumerate((800, 4200))},
        **{f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave\n", f"{cpu}/cpufreq/x": ""},
        **{
            f"{zone}0/type": "acpitz\n",
            f"{zone}0/temp": "27800\n",
            f"{zone}1/type": "x86_pkg_temp\n",
            f"{zone}1/temp": "61000\n",
        },
        **{f"{rapl}/energy_uj": "1000000\n"},
    )
    with PowerMeter(sysfs=tmp_path, tegrastats=None, nvpmodel=None) as meter:
        began_s = time.monotonic()
        write(tmp_path, **{f"{rapl}/energy_uj": "11000000\n"})
    assert time.monotonic() - began_s < 10, "the end of the block is not waited for"
    report = meter.report()
    assert (report.power_mode, report.cpu_mhz, report.gpu_mhz) == ("CPU governor powersave", (800, 4200), None)
    assert report.hottest == ("x86_pkg_temp", 61.0)
    assert report.meter == "RAPL, CPU package"
    assert report.watts is not None and report.watts > 1, "10 J within less than ten seconds"


def test_a_machine_that_tells_nothing_is_said_to(tmp_path: Path) -> None:
    with PowerMeter(sysfs=tmp_path, tegrastats="no-such-command", nvpmodel="no-such-command") as meter:
        pass
    assert meter.report() == PowerReport(readings=1)
    assert meter.report().rows() == [["power, clocks, temperature", "this machine does not tell"]]


def test_a_counter_that_may_not_be_read_is_no_reading(tmp_path: Path) -> None:
    """RAPL is for root alone; a folder in its place cannot be read by root either."""
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").mkdir(parents=True)
    write(tmp_path, **{"class/powercap/intel-rapl:1/energy_uj": "1\n"})
    with PowerMeter(sysfs=tmp_path, tegrastats=None, nvpmodel=None) as meter:
        write(tmp_path, **{"class/powercap/intel-rapl:1/energy_uj": "9000000\n"})
    assert meter.report().watts is None, "one of two packages is not the machine"


def test_a_power_mode_that_cannot_be_asked_is_unknown(tmp_path: Path) -> None:
    nvpmodel = script(tmp_path / "nvpmodel", "echo 'Error: not root' >&2; exit 255")
    with PowerMeter(sysfs=tmp_path, tegrastats=None, nvpmodel=nvpmodel) as meter:
        pass
    assert meter.report().power_mode is None
