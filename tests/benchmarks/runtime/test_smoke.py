"""What docs/runtime.md has the car's Python run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command_fixtures import RunBenchmark, SmallExport

pytestmark = pytest.mark.e2e


def test_everything_of_the_runtime_runs_once(small_export: SmallExport, run_benchmark: RunBenchmark) -> None:
    """What docs/runtime.md has the car's Python run; here in this one."""
    printed = run_benchmark("benchmarks/runtime/smoke.py", small_export.bundle)
    assert "FAIL" not in printed.stdout
    assert "ok   a session in a child process says the same" in printed.stdout
