"""Huge pages for weights: a decode step reads all of them, and small pages cost a table walk every 4 kB.

Linux only, where /sys/kernel/mm/transparent_hugepage/enabled says madvise or always; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAPS = Path("/proc/self/maps")
LARGE_BYTES = 8 << 20
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # <asm-generic/mman-common.h>; collapse: Linux 6.1, at once instead of in the background
ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?\n")

Range = tuple[int, int]  # first address, and the one behind the last


@contextmanager
def huge_pages() -> Iterator[None]:
    """What is allocated inside in large pieces comes to lie in huge pages, at the end of the block."""
    before = _anonymous()
    yield
    libc = ctypes.CDLL(None, use_errno=True)
    for start, stop in _new(before, _anonymous()):
        if stop - start >= LARGE_BYTES:
            for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):  # advice: a kernel that does not know it changes nothing
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), advice)


def _anonymous() -> list[Range]:
    """Private memory behind no file, ascending; [] where there is no /proc."""
    if not MAPS.exists():
        return []
    found = (ANONYMOUS.fullmatch(line) for line in MAPS.read_text().splitlines(keepends=True))
    return [(int(match[1], 16), int(match[2], 16)) for match in found if match]


def _new(before: list[Range], after: list[Range]) -> Iterator[Range]:
    """The parts of `after` that are not in `before`."""
    for start, stop in after:
        for old_start, old_stop in before:
            if old_start < stop and start < old_stop:
                if start < old_start:
                    yield start, old_start
                start = max(start, old_stop)
        if start < stop:
            yield start, stop
