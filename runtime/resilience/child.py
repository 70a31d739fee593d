"""A worker's child as its parent sees it: started, spoken with, ended, and what it died of."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from multiprocessing import Pipe

from drivekd.errors import RunnerError

from .server import OUT_OF_MEMORY, Reply, Request, Start

# isolated (-I): nothing is imported before the parent's own search path is in place, whatever lies in the current directory
BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from drivekd.runtime.resilience.server import main
main(*map(int, sys.argv[2:]))
"""
EXIT_S = 1.0  # from the end of a connection to the end of its process


class ChildLostError(Exception):
    """The child is gone, or hangs. Its text goes on after "the worker ..."."""


class Child:
    """A started child process. Raises RunnerError when none can be started."""

    def __init__(self, start: Start, images: int) -> None:
        """images: descriptor of the memory for images."""
        message = pickle.dumps(start)  # first: what cannot be sent starts nothing
        self._connection, theirs = Pipe()
        lifeline, self._lifeline = Pipe(duplex=False)
        inherited = theirs.fileno(), images, lifeline.fileno()
        command = [sys.executable, "-I", "-c", BOOT, json.dumps(sys.path), *map(str, inherited)]
        try:
            # stdout is the caller's result, which a library's chatter must not reach: it goes to the standard error
            self._process = subprocess.Popen(command, pass_fds=inherited, stdin=subprocess.DEVNULL, stdout=2)
        except OSError as error:
            raise RunnerError(f"no child process for the worker: {error}") from error
        finally:
            theirs.close()
            lifeline.close()
        self._connection.send_bytes(message)

    @property
    def pid(self) -> int:
        """Of its process, for a supervisor or a test."""
        return self._process.pid

    def alive(self) -> bool:
        """False also takes it out of the system's list of processes."""
        return self._process.poll() is None

    def send(self, request: Request) -> None:
        """Raises ChildLostError."""
        try:
            self._connection.send(request)
        except OSError as error:
            raise ChildLostError(self._died()) from error

    def receive(self, timeout_s: float) -> Reply | None:
        """The next message, None when none comes in time. Raises ChildLostError at once when the child is gone."""
        try:
            if not self._connection.poll(timeout_s):
                return None
            reply: Reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ChildLostError(self._died()) from error
        return reply

    def end(self, wait_s: float = 0.0) -> None:
        """Kill it, whatever it does, and close the connection: nothing that it said can be read any more.

        wait_s: at most, until it is gone. Freeing its memory takes a while, and what hangs in a driver may never go.
        """
        self._process.kill()
        self._connection.close()
        self._lifeline.close()
        self._exit_status(wait_s)

    def _died(self) -> str:
        status = self._exit_status(EXIT_S)
        if status is None:
            return "closed its connection"
        if status == OUT_OF_MEMORY:
            return "ran out of memory"
        if status < 0:
            return f"was ended by signal {-status} ({signal.strsignal(-status)})"
        return f"ended with exit status {status}; its standard error says why"

    def _exit_status(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
