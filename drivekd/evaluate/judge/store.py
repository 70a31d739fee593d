"""judge.jsonl: what judges replied, one line a call, only ever added to. A kill loses at most the calls that were under way.

A line is keyed by everything that decides a reply: prompt, model, endpoint, temperature, budget, seed. So a changed prediction is
asked anew, an unchanged one never, and several judges share one file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from drivekd.errors import DataError, UsageError

REPLIES = "judge.jsonl"


@dataclass(frozen=True)
class Line:
    """One call that came to an end.

    reply: as the judge wrote it; None when none came, then `error` says why and the question is asked again next time.
    cost: of the tokens in prices of that day; None without prices. cost_unknown: at most, for attempts whose reply never came.
    counted: whether the endpoint counted the tokens, else they are estimated.
    """

    key: str
    judge: str
    rubric: str
    reply: str | None
    finish_reason: str = "stop"
    error: str = ""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    counted: bool = True
    cost: float | None = None
    cost_unknown: float = 0.0
    attempts: int = 1
    seconds: float = 0.0
    served_by: str = ""
    time: str = ""


class ReplyStore:
    """The kept lines by key, and the end of the file for new ones. Made by `open_store`."""

    def __init__(self, path: Path, file: BinaryIO | None, lines: list[Line]) -> None:
        self.path, self._file = path, file
        self.replies = {line.key: line for line in lines if line.reply is not None}
        self._lines = lines

    def lines_of(self, judge: str) -> list[Line]:
        """All lines of one judge, those without a reply too."""
        return [line for line in self._lines if line.judge == judge]

    def add(self, line: Line) -> None:
        """On the disk when this returns. A later reply to a key replaces an earlier one."""
        assert self._file is not None, "opened for reading"
        self._file.write(json.dumps(asdict(line)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._lines.append(line)
        if line.reply is not None:
            self.replies[line.key] = line


@contextmanager
def open_store(folder: Path, *, write: bool = True) -> Iterator[ReplyStore]:
    """The folder's judge.jsonl; while it is open for writing no other process may. What a kill cut off its end is removed.

    Raises UsageError when another process writes, DataError for a line that is none of ours.
    """
    path = folder / REPLIES
    if not write:
        yield ReplyStore(path, None, _parse(path.read_bytes() if path.exists() else b"", path)[0])
        return
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{path}: another `drivekd judge` writes there; wait for it, or stop it") from error
        file.seek(0)
        lines, whole_bytes = _parse(file.read(), path)
        file.truncate(whole_bytes)
        yield ReplyStore(path, file, lines)


def _parse(data: bytes, path: Path) -> tuple[list[Line], int]:
    """The complete lines, and how many bytes they take."""
    whole = data[: data.rfind(b"\n") + 1]
    return [_line(text, f"{path}, line {number}") for number, text in enumerate(whole.splitlines(), 1)], len(whole)


def _line(text: bytes, source: str) -> Line:
    try:
        fields: dict[str, Any] = json.loads(text)
        line = Line(**fields)
        if not (isinstance(line.key, str) and isinstance(line.judge, str) and isinstance(line.reply, str | None)):
            raise TypeError("key, judge and reply are texts")
    except (ValueError, TypeError) as error:
        raise DataError(f"{source}: not a judge's reply ({error}); delete this line, its question is then asked again") from error
    return line
