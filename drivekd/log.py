"""What a person and a machine see of a run: the logger, one steady progress line, metrics.jsonl."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from drivekd.errors import DataError
from drivekd.files import write_whole

logger = logging.getLogger("drivekd")


def configure_logging(verbose: bool = False) -> None:
    """Send drivekd's log to stderr; stdout is for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False


def take_every_letter() -> None:
    """What the terminal's encoding lacks is written as \\u2192 to stdout and stderr: an arrow under Latin-1 ends no program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test's or a notebook's stream is left alone
            stream.reconfigure(errors="backslashreplace")


class ProgressLine:
    """One line that is rewritten on a terminal, and repeated at most every `interval_s` seconds elsewhere."""

    def __init__(self, stream: TextIO | None = None, interval_s: float = 10.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = 0.1 if self._stream.isatty() else interval_s
        self._last_s = 0.0
        self._width = 0

    def show(self, text: str, *, final: bool = False) -> None:
        """Say how far it is. final: whatever the interval, and nothing rewrites it."""
        now_s = time.monotonic()
        if not final and now_s - self._last_s < self._interval_s:
            return
        self._last_s = now_s
        if self._stream.isatty():
            self._stream.write("\r" + text.ljust(self._width) + ("\n" if final else ""))
            self._width = 0 if final else len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End a line that is still open, so that what is said next has its own."""
        if self._width:
            self._stream.write("\n")
            self._width = 0


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each with its `step`."""

    def __init__(self, path: Path, *, keep_until_step: int = 0) -> None:
        """Continue an existing file behind `keep_until_step`; later lines are cut, since those steps run again."""
        kept = [record for record in read_metrics(path) if record["step"] <= keep_until_step] if path.exists() else []
        write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Add one line. Raises TypeError when the record is no JSON."""
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """The file takes no more lines."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete records of a metrics.jsonl; a line cut by a kill at the file's end is left out. Raises DataError."""
    lines = path.read_text(encoding="utf-8").split("\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not a metrics record ({error})") from error
    return records
