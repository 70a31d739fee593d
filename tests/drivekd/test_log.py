"""metrics.jsonl survives kills, the progress line stays one line, the log goes to stderr."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivekd.errors import DataError
from drivekd.log import MetricsFile, ProgressLine, configure_logging, logger, read_metrics


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write_steps(path: Path, *steps: int, keep_until_step: int = 0) -> None:
    metrics = MetricsFile(path, keep_until_step=keep_until_step)
    for step in steps:
        metrics.write({"step": step, "loss": {"ce": 1 / step}})
    metrics.close()


def steps_in(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_records_read_back_equal(tmp_path: Path) -> None:
    write_steps(tmp_path / "metrics.jsonl", 1, 2)
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == {"step": 2, "loss": {"ce": 0.5}}


@pytest.mark.parametrize("kept", [0, 1, 3, 9])
def test_continuing_cuts_the_steps_that_run_again(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 2, 3, 4)
    write_steps(path, keep_until_step=kept)
    assert steps_in(path) == [step for step in (1, 2, 3, 4) if step <= kept]


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path: Path, length: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 2)
    text = path.read_text()[:length]
    path.write_text(text)
    whole = text.count("\n")
    found = steps_in(path)
    assert found[:whole] == [1, 2][:whole]
    assert len(found) <= whole + 1  # one more where only the newline was cut
    write_steps(path, 3, keep_until_step=2)
    assert steps_in(path) == [*found, 3]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


def test_every_record_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write({"step": 1})
    assert steps_in(tmp_path / "metrics.jsonl") == [1]  # not closed: a kill would lose nothing
    metrics.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1}


def test_a_terminal_sees_one_line_rewritten() -> None:
    stream = Terminal()
    line = ProgressLine(stream, interval_s=0)
    line._interval_s = 0
    line.show("step 10 of 20")
    line.show("step 20", final=True)
    assert stream.getvalue() == "\rstep 10 of 20\rstep 20      \n"  # padded: nothing of the longer text stays


def test_an_open_line_is_ended_once() -> None:
    stream = Terminal()
    line = ProgressLine(stream, interval_s=0)
    line.show("step 1")
    line.close()
    line.close()
    assert stream.getvalue() == "\rstep 1\n"
    line.show("step 2", final=True)
    line.close()
    assert stream.getvalue() == "\rstep 1\n\rstep 2\n"


def test_a_file_sees_few_lines_and_always_the_last() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream, interval_s=1e9)
    line._last_s = float("-inf")
    for step in range(5):
        line.show(f"step {step}", final=step == 4)
    assert stream.getvalue() == "step 0\nstep 4\n"


@pytest.fixture
def logging_restored() -> Iterator[None]:
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.usefixtures("logging_restored")
def test_the_log_goes_to_stderr_once_however_often_it_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging(verbose=True)
    logger.debug("found %d", 3)
    assert capsys.readouterr() == ("", "found 3\n")
    configure_logging()
    assert not logger.isEnabledFor(logging.DEBUG)
