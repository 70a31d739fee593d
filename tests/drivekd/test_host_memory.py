"""Freed maps and activations go back to the system: glibc's heap would keep them behind any small block."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e

ALLOCATIONS = """
import torch
from drivekd.host_memory import return_large_blocks

def resident_mb():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

return_large_blocks()
torch.ones(30 << 18)  # freed at once: with glibc's own rule blocks of up to 30 MB are heap from now on
before, large, small = resident_mb(), [], []
for _ in range(40):
    large.append(torch.ones(12 << 18))  # 12 MB, a map of S = 1,800
    small.append(torch.ones(1 << 14))
held = resident_mb()
large.clear()
print(held - before, resident_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_maps_leave_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", ALLOCATIONS], capture_output=True, text=True, check=True)
    held_mb, kept_mb = map(float, done.stdout.split())
    assert held_mb > 400
    assert kept_mb < 50


PAGES = """
import torch
from drivekd.host_memory import return_large_blocks
from drivekd.host_memory import return_freed_memory

def resident_mb():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

return_large_blocks()
before, freed, held = resident_mb(), [], []
for _ in range(80):
    freed.append(torch.ones(3 << 18))  # 3 MB, the student's hidden state of S = 1,800: below what goes back by itself
    held.append(torch.ones(1 << 10))
freed.clear()
kept = resident_mb() - before
return_freed_memory()
print(kept, resident_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_between_small_blocks_leave_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    kept_mb, after_mb = map(float, done.stdout.split())
    assert kept_mb > 150
    assert after_mb < 30
