"""A file of answers that grows while they come. Whatever ends the process, the answers written before are there: a line that was
cut is taken off when the file is opened again, and asked anew.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from drivekd.errors import DataError, DrivekdError, UsageError
from drivekd.files import disk_is_full

from .line import Line, line_from_text

SYNC_S = 2.0  # between two fsyncs: what a power cut may cost
_NAME = re.compile(r"predictions(\.\d+-of-\d+)?\.jsonl")


class AnswerFile:
    """The file that this process adds to; nobody else may meanwhile. A context manager.

    Raises UsageError when another process holds it, DataError when a line in its midst is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        with ExitStack() as opened:
            opened.callback(os.close, self._file)
            self._lock()
            os.ftruncate(self._file, sum(len(line) for line in _whole_lines(path)))
            self.lines = read_lines(path)
            opened.pop_all()
        self._synced_s = time.monotonic()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def add(self, line: Line) -> None:
        """Append a line. Raises DrivekdError when the disk is full; the answers before it are kept."""
        data = line.to_text().encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if time.monotonic() - self._synced_s > SYNC_S:
                os.fsync(self._file)
                self._synced_s = time.monotonic()
        except OSError as error:
            if not disk_is_full(error):
                raise
            raise DrivekdError(
                f"{self.path}: no space left on the disk; free space, and the same command goes on here"
            ) from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{self.path}: another process is adding answers to it; wait for it, or take another --out"
            ) from error


def answers_in(folder: Path) -> list[Line]:
    """All answers of an evaluation's folder, of all its shards: each question once, by setting as they were begun, then by index.

    A line that is being written is left out. Raises DataError naming file and line.
    """
    found: dict[tuple[str, int], Line] = {}
    for path in sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)):
        for line in read_lines(path):
            found.setdefault(line.key, line)
    settings = list(dict.fromkeys(setting for setting, _ in found))
    return sorted(found.values(), key=lambda line: (settings.index(line.answered.setting), line.index))


def read_lines(path: Path) -> list[Line]:
    """The whole lines of one file. Raises DataError naming file and line."""
    return [
        line_from_text(_text(data, path, number), f"{path}, line {number}") for number, data in enumerate(_whole_lines(path), 1)
    ]


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Up to the last end of a line: what comes behind it was cut."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _text(data: bytes, path: Path, number: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not text in UTF-8 ({error})") from error
