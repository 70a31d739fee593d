"""Sessions whose engine fails when a file says so; opened by name in a worker's child, so nothing here imports torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from drivekd.errors import RunnerError
from drivekd.runtime.load import load_bundle
from drivekd.runtime.session.session import Session

ENGINE_FAULTS = ("raises", "nan", "memory")  # a session lives on after these, without or with a process of its own
DEATHS = ("kill", "segv", "exit")
HANGS = ("hang", "stop")
CHATTER = "a library's banner"


def open_faulty(path: Path, *, trigger: Path, **options: Any) -> Session:
    """A real session. Before each vision call, the word in the file `trigger` happens, once."""
    session = load_bundle(path, **options)
    spoil(session, trigger)
    return session


def spoil(session: Session, trigger: Path) -> None:
    session.model.vision.infer = _faulty(session.model.vision.infer, trigger)  # type: ignore[method-assign]


def open_without_torch(path: Path, **options: Any) -> Session:
    if found := {"torch", "transformers", "onnx"} & set(sys.modules):
        raise RunnerError(f"the child has imported {sorted(found)}")
    print(CHATTER, flush=True)
    return load_bundle(path, **options)


def open_out_of_memory(path: Path) -> Session:
    raise MemoryError


def open_never(path: Path) -> Session:
    time.sleep(3600)
    raise AssertionError


def open_one_after_another(path: Path, *, turn: Path, **options: Any) -> Session:
    """The bundle that the file `turn` names: one that was exchanged on the disk."""
    return load_bundle(Path(turn.read_text(encoding="utf-8")), **options)


def _faulty(infer: Callable[[Any], Any], trigger: Path) -> Callable[[Any], Any]:
    def faulty(feeds: dict[str, Any]) -> Any:
        fault = trigger.read_text(encoding="utf-8") if trigger.exists() else ""
        if fault:
            trigger.unlink()
        if fault == "raises":
            raise RunnerError("injected: the engine refuses")
        if fault == "nan":
            return infer({name: np.full_like(value, np.nan) for name, value in feeds.items()})
        _happen(fault)
        return infer(feeds)

    return faulty


def _happen(fault: str) -> None:
    if fault == "memory":
        np.empty(1 << 60, np.uint8)  # what no machine has
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault == "exit":
        os._exit(3)
    elif fault == "hang":
        time.sleep(3600)
    elif fault == "stop":  # every thread, as when the kernel does not come back
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "slow":
        time.sleep(0.5)
