"""An engine in a process of its own, asked with JSON lines; and the ratio of engines that take turns.

A machine that others use slows down for minutes. Seconds then mean little, but what two engines took directly after one another
was slowed down alike: the ratio of neighbouring turns holds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import environment

HUGE_PAGES = "glibc.malloc.hugetlb=1"  # glibc 2.35: malloc asks for transparent huge pages; read when a process starts


class EngineEndedError(SystemExit):
    """The process is gone, its messages are on stderr. Nobody needs to catch it: then the benchmark ends with this message."""


class EngineProcess:
    """A context manager. loaded: the process's first line, what it took to load."""

    def __init__(self, label: str, command: Sequence[str | Path], threads: int, *, huge_pages: bool = False) -> None:
        self.label = label
        variables = environment(threads) | ({"GLIBC_TUNABLES": HUGE_PAGES} if huge_pages else {})
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
            encoding="utf-8",
        )

    def __enter__(self) -> EngineProcess:
        try:
            self.loaded = self._reply()
        except EngineEndedError:  # `with` calls no __exit__ then
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()  # closes stdin: the process ends
        self._process.wait()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, **question: object) -> dict[str, Any]:
        """One line there, one line back. Raises EngineEndedError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineEndedError(f"{self.label}: its process ended; its messages are above") from error
        return self._reply()

    def logits(self, work: Path) -> NDArray[np.float32]:
        """Behind the prompt [V], or behind each question [questions, V]. work: the folder that they pass through."""
        path = work / f"{self.label}-logits.npy"
        self.ask(save=str(path))
        found: NDArray[np.float32] = np.load(path)
        return found

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()  # `running` must know it at once
            raise EngineEndedError(f"{self.label}: its process ended; its messages are above")
        reply: dict[str, Any] = json.loads(line)
        return reply


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Of logits [V], or the worst of rows [N, V]: do both compute one model? Two int4 roundings of it differ by some percent."""
    dot = (first * second).sum(axis=-1)
    return float((dot / (np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1))).min())


def turn_ratios(peer: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times as long the peer takes, from what both took in neighbouring turns: median, smallest and largest."""
    ratios = [theirs / mine for theirs, mine in zip(peer, ours, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
