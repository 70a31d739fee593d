"""Questions are asked once, whatever stops an evaluation, and however many processes share it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recited import Recited, questions

from drivekd.errors import DataError, DrivekdError
from drivekd.evaluate.answering import CLEAN, Pictures
from drivekd.evaluate.asking import ask
from drivekd.evaluate.predictions import Shard, answers_in

SAMPLES = dict(enumerate(questions(30)))
BLACK = Pictures("NoImage")


def right(sample: object) -> str:
    return "Yes."


def test_every_question_once_under_every_setting(tmp_path: Path) -> None:
    answerer = Recited(right)
    lines, num_open = ask(answerer, SAMPLES, [CLEAN, BLACK], tmp_path, Shard())
    assert num_open == 0
    assert [line.key for line in lines] == [(setting, index) for setting in ("clean", "NoImage") for index in range(30)]
    assert all(line.answered.sample == SAMPLES[line.index] and line.answered.given.text == "Yes." for line in lines)
    assert len(answerer.asked) == len(set(answerer.asked)) == 60
    again = Recited(right)
    assert ask(again, SAMPLES, [CLEAN, BLACK], tmp_path, Shard()) == (lines, 0)
    assert again.asked == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, DrivekdError("no memory")])
def test_what_was_answered_before_a_stop_is_not_asked_again(stop: BaseException, tmp_path: Path) -> None:
    def until_seven(sample: object) -> str:
        if len(first.asked) == 7:
            raise stop
        return "Yes."

    first, second = Recited(until_seven), Recited(right)
    with pytest.raises(DrivekdError, match=r"interrupted after 7 of 60 answers; they are kept in .*|no memory"):
        ask(first, SAMPLES, [CLEAN, BLACK], tmp_path, Shard())
    lines, num_open = ask(second, SAMPLES, [CLEAN, BLACK], tmp_path, Shard())
    assert (len(lines), num_open) == (60, 0)
    assert len(first.asked) == 7 and len(second.asked) == 53
    assert not set(first.asked) & set(second.asked)


def test_the_last_shard_has_them_all(tmp_path: Path) -> None:
    answerers = [Recited(right) for _ in range(3)]
    opened = [ask(answerer, SAMPLES, [CLEAN], tmp_path, Shard(n, 3))[1] for n, answerer in enumerate(answerers, 1)]
    assert opened == [18, 6, 0], "five frames of six questions: two, two and one frame"
    asked = [source for answerer in answerers for source in answerer.asked]
    assert len(asked) == len(set(asked)) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"predictions.{n}-of-3.jsonl" for n in (1, 2, 3)]
    assert ask(Recited(right), SAMPLES, [CLEAN], tmp_path, Shard())[1] == 0, "one process reads what shards have written"


@pytest.mark.parametrize("edited", [{"answer": "Yes, but."}, {"question": "Is it day?"}, {"scene": "another"}])
def test_a_line_that_says_something_else_of_its_record_is_refused(edited: dict[str, str], tmp_path: Path) -> None:
    ask(Recited(right), SAMPLES, [CLEAN], tmp_path, Shard())
    path = tmp_path / "predictions.jsonl"
    first, *others = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    reordered = [*reversed(others), {**first, **edited}]
    path.write_text("".join(json.dumps(line) + "\n" for line in reordered), encoding="utf-8")
    with pytest.raises(DataError, match="give a new --out") as raised:
        ask(Recited(right), SAMPLES, [CLEAN], tmp_path, Shard())
    ((field, value),) = edited.items()
    assert f"the answer with index 0 is to {field} {value!r}, but f.json, record 1 has" in str(raised.value)


SLOW = """
import sys, time
from pathlib import Path
from recited import Recited, questions
from drivekd.evaluate.answering import CLEAN
from drivekd.evaluate.asking import ask
from drivekd.evaluate.predictions import Shard
ask(Recited(lambda sample: time.sleep(0.002) or "Yes."), dict(enumerate(questions(30))), [CLEAN], Path(sys.argv[1]), Shard())
"""


@pytest.mark.e2e
def test_kill_9_loses_no_answer_and_asks_none_twice(tmp_path: Path) -> None:
    places = os.pathsep.join([str(Path(__file__).resolve().parents[2] / "cases"), os.environ.get("PYTHONPATH", "")])
    path = tmp_path / "predictions.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], env={**os.environ, "PYTHONPATH": places})
    while not path.is_file() or path.stat().st_size < 2000:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = answers_in(tmp_path)
    assert 0 < len(before) < 30, "the kill came too late to say anything"
    answerer = Recited(right)
    lines, num_open = ask(answerer, SAMPLES, [CLEAN], tmp_path, Shard())
    assert (len(lines), num_open) == (30, 0)
    assert {source for _, source in answerer.asked} == {SAMPLES[i].source for i in range(30)} - {
        line.answered.sample.source for line in before
    }
    assert path.read_bytes().count(b"\n") == 30
