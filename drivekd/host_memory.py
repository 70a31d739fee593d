"""Memory of the host: what was freed goes back to the machine, and weights lie in huge pages.

glibc keeps freed memory for later, and on a car other programs need it now. A decode step reads all weights, and small pages cost
a table walk every 4 kB. Elsewhere than on glibc, or where /sys/kernel/mm/transparent_hugepage/enabled says never,
nothing happens.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
APART_BYTES = 1 << 20
USUAL_BYTES = 32 << 20  # where glibc's own threshold ends up after a first large block was freed, and half of its trim threshold


def return_freed_memory() -> None:
    """Measured for InternVL3-1B int4: 215 MB behind its decoder's session, 95 MB behind its tokenizer."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Inside, a block of 1 MB or more is a mapping of its own, gone when it is freed, and leaves no hole in the heap.

    A session that packs its weights frees as much as it keeps: 70 MB less at the peak of InternVL3-1B int4 (measured).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, APART_BYTES)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, USUAL_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * USUAL_BYTES)


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
    found = (ANONYMOUS.fullmatch(line) for line in MAPS.read_text(encoding="utf-8").splitlines(keepends=True))
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


LARGE_BLOCK_BYTES = 8 << 20


def return_large_blocks() -> None:
    """From now on tensors of LARGE_BLOCK_BYTES and more go back to the system when they are freed, on a host with glibc.

    Left alone, glibc puts blocks of up to 32 MB into its heap, where a small block behind them keeps them: a third of a
    training step's memory was freed maps and activations that nobody could use (docs/distillation.md has the figures).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and no such heap
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
