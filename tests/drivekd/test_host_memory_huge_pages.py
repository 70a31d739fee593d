"""Large memory comes to lie in huge pages, where the system has them."""

from __future__ import annotations

import mmap
import re
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


def test_large_memory_comes_to_lie_in_huge_pages() -> None:
    if not kernel_gives_huge_pages():
        pytest.skip("needs a kernel that gives huge pages now")
    numpy_asks = np._core.multiarray._set_madvise_hugepage(False)  # type: ignore[attr-defined]
    try:
        with huge_pages():
            array = np.ones(NUM_BYTES, np.uint8)
            before = huge_kb(array)
        assert before < NUM_BYTES / 1024 / 4 or "[always]" in SETTING.read_text()
        found_kb = huge_kb(array)
        if found_kb < NUM_BYTES / 1024 / 2 and not kernel_gives_huge_pages():
            pytest.skip("the kernel ran out of huge pages meanwhile: other processes took them")
        assert found_kb >= NUM_BYTES / 1024 / 2, "the ends of the memory may not fill a huge page"
        assert array.min() == array.max() == 1
    finally:
        np._core.multiarray._set_madvise_hugepage(numpy_asks)  # type: ignore[attr-defined]
