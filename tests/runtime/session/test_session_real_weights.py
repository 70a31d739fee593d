"""A session on pretrained weights: 30 layers, 49,152 words, activations that random weights do not have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from drivekd.images import RGBImage
from drivekd.runtime import Session, WorkerSession
from drivekd.runtime.answers.schemas import valid_answer, with_cameras

pytestmark = [pytest.mark.numerics, pytest.mark.real]

WORDS = 10  # of an answer


@pytest.fixture
def session(real_session: Session) -> Session:
    real_session.model.prefix.forget()
    return real_session


def texts(session: Session, images: Mapping[str, RGBImage], **options: object) -> dict[str, tuple[str, float | None]]:
    """What is said, and how likely it was, to the bit."""
    answers = session.answer(images, max_new_tokens=WORDS, **options)  # type: ignore[arg-type]
    return {name: (answer.text, answer.mean_logprob) for name, answer in answers.items()}


def test_a_kept_prefix_gives_what_reading_anew_gives(session: Session, images: dict[str, RGBImage]) -> None:
    first = texts(session, images)
    later = images | {"CAM_BACK": np.roll(images["CAM_BACK"], 9, axis=1) ^ 77}
    kept = texts(session, later)
    assert session.counts["images_encoded"] == 1
    session.model.prefix.forget()
    assert texts(session, later) == kept
    assert session.counts["images_encoded"] == 2
    assert kept != first
    assert all(len(text.split()) > 3 for text, _ in kept.values())


def test_three_at_once_say_what_each_says_alone(session: Session, images: dict[str, RGBImage]) -> None:
    together = session.answer(images, max_new_tokens=WORDS)
    for name, answer in together.items():
        alone = session.answer(images, capabilities=[name], max_new_tokens=WORDS)[name]
        assert alone.text == answer.text
        assert alone.mean_logprob == pytest.approx(answer.mean_logprob, abs=1e-4)  # another batch, another order of sums


def test_pieces_are_the_text(session: Session, images: dict[str, RGBImage]) -> None:
    pieces: dict[str, list[str]] = {name: [] for name in session.capabilities}
    answers = session.answer(images, max_new_tokens=WORDS, on_text=lambda name, piece: pieces[name].append(piece))
    assert {name: "".join(found) for name, found in pieces.items()} == {name: answer.text for name, answer in answers.items()}
    assert all(len(found) > WORDS // 2 for found in pieces.values())


def test_structured_answers_fit_and_force_tokens(session: Session, images: dict[str, RGBImage]) -> None:
    answers = session.answer(images, max_new_tokens=48, structured=True)
    for name, answer in answers.items():
        schema = with_cameras(session.schemas[name], tuple(images))
        assert valid_answer(schema, answer.structured) is None, "cameras were strings of digits, actions and objects came again"
    assert session.counts["tokens_forced"] > 20, "keys and the rest of names"


@pytest.mark.slow
def test_a_worker_says_the_same_and_keeps_its_deadline(session: Session, real_bundle: Path, images: dict[str, RGBImage]) -> None:
    expected = texts(session, images), texts(session, images, structured=True)
    with WorkerSession(real_bundle, threads=os.cpu_count()) as worker:
        answers = [worker.answer(images, max_new_tokens=WORDS, structured=structured) for structured in (False, True)]
        found = [{name: (answer.text, answer.mean_logprob) for name, answer in given.items()} for given in answers]
        assert (found[0], found[1]) == expected
        late = worker.answer(images, deadline_ms=1, structured=True)
    assert all(answer.structured is not None and not answer.complete for answer in late.values())
    assert {answer.finish_reason for answer in late.values()} == {"deadline"}
