"""This process's memory as Linux has it. Imports nothing else, so that a process which measures itself can import it first."""

from __future__ import annotations

from pathlib import Path

FIELDS = {"rss_mb": "VmRSS", "peak_mb": "VmHWM"}


def memory_mb() -> dict[str, float]:
    """Resident set: rss_mb, now; peak_mb, at its highest since the start or `restart_peak`. Exits where it is not counted."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    if missing := FIELDS.values() - status.keys():
        raise SystemExit(f"/proc/self/status has no {', '.join(sorted(missing))}: memory is measured on Linux alone")
    return {name: int(status[key].split()[0]) / 1024 for name, key in FIELDS.items()}


def restart_peak() -> None:
    """Set the highest resident set back to the present one."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5)
