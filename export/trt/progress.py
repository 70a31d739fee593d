"""What TensorRT says and how far it is: its log kept for errors, its phases as one line every few seconds.

TensorRT calls these objects from its own threads. An exception must not travel through C++, so an interrupt is kept, the build
is asked to stop, and whoever waits for it raises the interrupt again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

OnLine = Callable[[str], None]

INTERVAL_S = 5.0  # between two lines of one build
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
INCONSISTENT_PROFILE = "not self-consistent"  # a warning of TensorRT's, but the engine would fail at these shapes


@dataclass
class Messages:
    """errors, warnings: TensorRT's own, in order."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Errors, and the warnings that mean one."""
        return self.errors + [text for text in self.warnings if INCONSISTENT_PROFILE in text]

    def add(self, severity: str, text: str) -> None:
        """Keep a message of TensorRT's logger. severity: its word, such as "Severity.ERROR"; information is not kept."""
        if "ERROR" in severity:
            self.errors.append(text)
        elif "WARNING" in severity:
            self.warnings.append(text)


def logger_of(api: ModuleType, messages: Messages) -> Any:
    """TensorRT's ILogger that fills `messages`."""

    def start(self: Any) -> None:
        api.ILogger.__init__(self)

    def log(self: Any, severity: Any, text: str) -> None:
        messages.add(str(severity), text)

    return type("KeptMessages", (api.ILogger,), {"__init__": start, "log": log})()


class Progress:
    """Phases of one build as lines: "decoder: Building engine, 3 of 6; 42 s, 2.1 GB"."""

    def __init__(self, engine: str, on_line: OnLine, now_s: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._on_line = on_line
        self._now_s = now_s
        self._started_s = self._said_s = now_s()
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()
        self.interrupt: KeyboardInterrupt | OSError | None = None

    def start(self, phase: str, num_steps: int) -> None:
        """A phase begins; its steps are counted from 0."""
        self._steps[phase] = num_steps

    def step(self, phase: str, step: int) -> bool:
        """Whether to go on."""
        try:
            with self._lock:
                self._say(f"{phase}, {step + 1} of {self._steps.get(phase, step + 1)}")
        except (KeyboardInterrupt, OSError) as error:  # Ctrl-C, or nobody reads the lines any more
            self.interrupt = error
        return self.interrupt is None

    def _say(self, text: str) -> None:
        now_s = self._now_s()
        if now_s - self._said_s >= INTERVAL_S:
            self._said_s = now_s
            memory = f"{peak_memory_bytes() / 1e9:.1f} GB"
            self._on_line(f"{self._engine}: {text}; {now_s - self._started_s:.0f} s, {memory}")


def monitor_of(api: ModuleType, progress: Progress) -> Any:
    """TensorRT's IProgressMonitor that moves `progress`."""

    def start(self: Any) -> None:
        api.IProgressMonitor.__init__(self)

    def phase_start(self: Any, phase: str, parent: str | None, num_steps: int) -> None:
        progress.start(phase, num_steps)

    def phase_finish(self: Any, phase: str) -> None:
        pass

    def step_complete(self: Any, phase: str, step: int) -> bool:
        return progress.step(phase, step)

    methods = {"__init__": start, "phase_start": phase_start, "phase_finish": phase_finish, "step_complete": step_complete}
    return type("SpokenProgress", (api.IProgressMonitor,), methods)()


def restart_peak_memory() -> None:
    """Set the peak back to what the process holds now (proc(5)); where the kernel forbids it, the peak is since the start."""
    try:
        CLEAR_REFS.write_text("5", encoding="utf-8")
    except PermissionError:
        return


def peak_memory_bytes() -> int:
    """Most memory that this process held."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{STATUS} without VmHWM")
