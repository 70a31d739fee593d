"""Two processes that are forked from one which has torch and the trainer already: importing them takes longest."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

PRELOADED = ["drivekd.distill.training.trainer"]  # one list for every test: the first to fork starts the one server


def run_two(function: Callable[..., None], *arguments: object) -> None:
    """Call function(rank, port, *arguments) in processes of rank 0 and 1; port: free on 127.0.0.1. Raises what they raise."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    start: Any = torch.multiprocessing.start_processes
    start(function, (_free_port(), *arguments), nprocs=2, start_method="forkserver")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
