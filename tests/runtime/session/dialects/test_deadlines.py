"""A deadline ends a read between two engine calls, and an answer after one call at most; in both families and dialects."""

from __future__ import annotations

from typing import Any

import pytest
from dialect_cases import Images

from drivekd.runtime.answers.deadline import Deadline, DeadlineExpiredError
from drivekd.runtime.engine.ort import BoundGraph
from drivekd.runtime.session.session import Session

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("shared_session", ["gqa"], indirect=True)  # the other dialect reads in one call
@pytest.mark.parametrize("reason", ["deadline", "cancelled"])
@pytest.mark.parametrize(("lengths", "last"), [((4, 5, 6), 1), ((4, 5, 6), 2), ((1, 4, 1, 9), 1), ((1, 4, 1, 9), 2)])
def test_a_read_ends_between_two_calls(
    shared_session: Session, lengths: tuple[int, ...], last: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = shared_session.model.decoder
    sequences = [[5] * length for length in lengths]
    start = decoder.engine_calls
    if reason == "deadline":
        monkeypatch.setattr(Deadline, "elapsed_ms", lambda self: decoder.engine_calls - start)
    deadline = Deadline(last) if reason == "deadline" else Deadline(None, lambda: decoder.engine_calls - start >= last)
    with pytest.raises(DeadlineExpiredError):
        decoder.read(sequences, decoder.empty_cache(len(lengths), room=9), deadline)
    assert decoder.engine_calls - start == last


@pytest.mark.parametrize("allowed_calls", range(10))
def test_the_deadline_waits_for_one_engine_call_at_most(
    session: Session, images: Images, allowed_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time moves only with engine calls; whichever one passes the deadline is the last."""
    full = session.answer(images, max_new_tokens=4)
    session.model.prefix.forget()
    calls = counted_calls(session, monkeypatch)
    monkeypatch.setattr(Deadline, "elapsed_ms", lambda self: 10.0 * len(calls))
    answers = session.answer(images, max_new_tokens=4, deadline_ms=10 * allowed_calls - 5)
    assert len(calls) == allowed_calls
    # 2 tiles; system prompt and 2 images; questions: at once, or one by one
    first_tokens = 6 if session.dialect == "concat" else 8
    for capability, answer in answers.items():
        assert answer.finish_reason == "deadline" or allowed_calls > first_tokens + 2
        assert answer.tokens == min(4, max(0, allowed_calls - first_tokens + 1))
        assert full[capability].text.startswith(answer.text)


def counted_calls(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def count(name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(session.model.vision, "infer", count("vision", session.model.vision.infer))
    monkeypatch.setattr(session.model.decoder._runner, "infer", count("decoder", session.model.decoder._runner.infer))  # type: ignore[attr-defined]
    monkeypatch.setattr(BoundGraph, "run", count("decoder", BoundGraph.run))
    return calls
