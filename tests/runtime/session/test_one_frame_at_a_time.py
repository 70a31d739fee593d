"""A second frame while one is answered is refused, by every kind of session: it would write into the memory of the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from drivekd.errors import UsageError
from drivekd.runtime import Answer, load_bundle
from drivekd.runtime.resilience.ladder import Ladder, Rung
from drivekd.runtime.resilience.worker import WorkerSession
from drivekd.runtime.session.session import AnswerSession

pytestmark = pytest.mark.numerics

DARK, BRIGHT = ({"CAM_FRONT": np.full((60, 80, 3), shade, np.uint8)} for shade in (20, 220))
SESSIONS: dict[str, Callable[[Path], AnswerSession]] = {
    "session": lambda bundle: load_bundle(bundle, threads=1, gate=False),
    "worker": lambda bundle: WorkerSession(bundle, threads=1, gate=False),
    "ladder": lambda bundle: Ladder([Rung("cpu", lambda: load_bundle(bundle, threads=1, gate=False))]),
}


@pytest.fixture(params=SESSIONS)
def session(request: pytest.FixtureRequest, bundle: Path) -> Iterator[AnswerSession]:
    made = SESSIONS[request.param](bundle)
    yield made
    made.close()


def said(answers: dict[str, Answer]) -> dict[str, tuple[str, float]]:
    return {name: (answer.text, answer.mean_logprob) for name, answer in answers.items()}


def test_another_thread_is_refused_and_the_frame_keeps_its_answers(session: AnswerSession) -> None:
    alone, busy, go_on = said(session.answer(DARK, max_new_tokens=4)), threading.Event(), threading.Event()
    found = []

    def slow(capability: str, piece: str) -> None:
        busy.set()
        assert go_on.wait(60)

    asking = threading.Thread(target=lambda: found.append(said(session.answer(DARK, max_new_tokens=4, on_text=slow))))
    asking.start()
    assert busy.wait(60)
    try:
        with pytest.raises(UsageError, match="answering a frame already"):
            session.answer(BRIGHT, max_new_tokens=4)
    finally:
        go_on.set()
        asking.join()
    assert found == [alone]
    assert said(session.answer(BRIGHT, max_new_tokens=4)).keys() == alone.keys(), "its turn is over"


def test_on_text_cannot_ask_and_what_it_raises_ends_the_turn(session: AnswerSession) -> None:
    with pytest.raises(UsageError, match="answering a frame already"):
        session.answer(DARK, max_new_tokens=2, on_text=lambda capability, piece: [*session.answer(BRIGHT)])  # type: ignore[arg-type,return-value]
    assert session.answer(DARK, max_new_tokens=2)
