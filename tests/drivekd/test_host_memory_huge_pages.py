"""Large memory comes to lie in huge pages, where the system has them."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drivekd import host_memory as module
from drivekd.host_memory import huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
NUM_BYTES = 64 << 20


def huge_kb(array: np.ndarray) -> int:  # type: ignore[type-arg]
    """Of the mapping that holds the array."""
    address = array.ctypes.data
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise AssertionError("no mapping holds the array")


def test_only_new_memory_is_touched() -> None:
    assert list(module._new([(0, 10), (20, 30)], [(0, 12), (18, 32), (40, 50)])) == [(10, 12), (18, 20), (30, 32), (40, 50)]
    assert list(module._new([], [(5, 9)])) == [(5, 9)]
    assert list(module._new([(0, 100)], [(5, 9)])) == []


def test_without_proc_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAPS", tmp_path / "maps")
    with huge_pages():
        pass


def kernel_gives_huge_pages() -> bool:
    """Whether it gives them now, asked by another way: with memory in small pieces it gives none, and nobody can do anything."""
    if not SETTING.exists() or "[never]" in SETTING.read_text():
        return False
    memory = mmap.mmap(-1, NUM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # unmapped with the array
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory.write(bytes(NUM_BYTES))
    return huge_kb(np.frombuffer(memory, np.uint8)) >= NUM_BYTES / 1024 / 2


@pytest.mark.e2e
def test_large_memory_comes_to_lie_in_huge_pages() -> None:
    """In a process of its own: one that has run thousands of tests may be refused what a new one gets (seen, on Linux 6.18)."""
    asked = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    given, before, after, is_kept = json.loads(asked.stdout)
    if not given:
        pytest.skip("needs a kernel that gives huge pages now")
    assert before < NUM_BYTES / 1024 / 4 or "[always]" in SETTING.read_text()
    assert after >= NUM_BYTES / 1024 / 2, "the ends of the memory may not fill a huge page"
    assert is_kept


def measure() -> tuple[bool, int, int, bool]:
    """Whether the kernel gives huge pages, kB of them before and after, and whether the values are as they were."""
    np._core.multiarray._set_madvise_hugepage(False)  # type: ignore[attr-defined]
    with huge_pages():
        array = np.ones(NUM_BYTES, np.uint8)
        before = huge_kb(array)
    after = huge_kb(array)
    return kernel_gives_huge_pages(), before, after, bool(array.min() == array.max() == 1)


if __name__ == "__main__":
    print(json.dumps(measure()))
