"""What a frame is asked: found to be wrong in one place, the same by keyword, and fit for the way to another process."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_bundle import small_files, small_manifest

from drivekd.errors import UsageError
from drivekd.images import RGBImage
from drivekd.runtime import Answer, Answering, Ask, Ladder, Sampling, Session, WorkerSession
from drivekd.runtime.bundle.manifest import Generation

PROMPTS = {"perception": "What is near?", "planning": "At {speed} m/s, what next?"}
DEFAULTS = {"speed": 8}
IMAGES = {"CAM_FRONT": np.zeros((2, 2, 3), np.uint8)}


class Recorder(Answering):
    """Keeps what it was asked."""

    def answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        self.asked = ask
        return {}


def test_every_field_of_an_ask_is_a_keyword_of_answer_with_the_same_default() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Ask)}
    keywords = inspect.signature(Answering.answer).parameters.values()
    assert {one.name: one.default for one in keywords if one.kind is one.KEYWORD_ONLY} == fields


def test_keywords_arrive_as_they_were_given() -> None:
    recorder = Recorder()
    checked: dict[str, Any] = {"capabilities": ["planning"], "question": "Is it wet?", "deadline_ms": 20.0, "max_new_tokens": 3}
    for field in dataclasses.fields(Ask):
        value: Any = checked.get(field.name, object())
        recorder.answer(IMAGES, **{field.name: value})
        assert recorder.asked == Ask(**{field.name: value})
    recorder.answer(IMAGES)
    assert recorder.asked == Ask()


@pytest.mark.parametrize("kind", [Session, WorkerSession, Ladder])
def test_the_keywords_stand_once(kind: type[Answering]) -> None:
    assert kind.answer is Answering.answer


def test_an_ask_without_callbacks_is_sent_as_it_is() -> None:
    ask = Ask(capabilities=("planning",), variables={"speed": 3.5}, deadline_ms=20.0, sampling=Sampling(0.5, seed=3))
    assert pickle.loads(pickle.dumps(ask)) == ask


def test_questions_are_the_bundles_or_one_of_the_callers() -> None:
    whole = {"perception": "What is near?", "planning": "At 8 m/s, what next?"}
    assert Ask().questions(PROMPTS, DEFAULTS) == whole
    assert list(Ask(capabilities=["planning", "perception"]).questions(PROMPTS, DEFAULTS)) == ["planning", "perception"]
    assert Ask(capabilities=["planning"], variables={"speed": 3.5}).questions(PROMPTS, DEFAULTS) == {
        "planning": "At 3.5 m/s, what next?"
    }
    assert Ask(question="Why {speed}?").questions(PROMPTS, DEFAULTS) == {"question": "Why {speed}?"}
    assert Ask(question="Why?", capabilities=["planning"]).questions(PROMPTS, DEFAULTS) == {"planning": "Why?"}
    learnt = {"structured_instruction": " As JSON {speed}."}  # literally: it is no template
    assert Ask().questions(PROMPTS, DEFAULTS, **learnt) == whole
    under_one = Ask(question="Why?", capabilities=["planning"], structured=True)
    assert under_one.questions(PROMPTS, DEFAULTS, **learnt) == {"planning": "Why? As JSON {speed}."}
    assert Ask(structured=True).questions(PROMPTS, DEFAULTS, **learnt) == {
        name: f"{question} As JSON {{speed}}." for name, question in whole.items()
    }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"question": "Why?", "structured": True}, "a free question has no schema: name the one capability"),
        ({"question": "Why?", "capabilities": ["planning", "perception"]}, "asked under one capability, got 2"),
        ({"capabilities": []}, "no capability asked; this bundle has: perception, planning"),
        ({"capabilities": ["planning", "steering"]}, "capability 'steering' is unknown; this bundle has: perception, planning"),
        ({"variables": {"sped": 3}}, "variable 'sped' is unknown to this bundle; it has: speed"),
        ({"question": "Why?", "variables": {"sped": 3}}, "variable 'sped' is unknown"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; an answer takes at least 1"),
        ({"question": "Why?", "max_new_tokens": -1}, "max_new_tokens is -1"),
    ],
)
def test_what_cannot_be_asked_is_said(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Ask(**asked).questions(PROMPTS, DEFAULTS)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"capabilities": "planning"}, "expected a list of names"),
        ({"deadline_ms": float("nan")}, "deadline_ms is NaN"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; expected a whole number"),
        ({"question": 5}, "question is 5; expected text"),
        ({"question": "half \ud83d of it"}, "without halves of characters"),
    ],
)
def test_what_no_session_could_be_asked_is_refused_at_once(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Ask(**wrong)


def test_any_collection_of_capabilities_travels_and_no_deadline_is_endless() -> None:
    ask = Ask(capabilities={"planning": 1}.keys(), deadline_ms=float("inf"))
    assert pickle.loads(pickle.dumps(ask)) == Ask(capabilities=("planning",))


def test_numpys_whole_numbers_are_whole_numbers() -> None:
    assert Ask(max_new_tokens=np.int64(3), sampling=Sampling(seed=np.int32(7))) == Ask(
        max_new_tokens=3, sampling=Sampling(seed=7)
    )


# --- how long an answer may be --------------------------------------------------------------------------------------

BUDGETS = {"perception": 152, "planning": 16}


def limits(ask: Ask, *names: str, instruction: str = "") -> dict[str, int]:
    manifest = replace(
        small_manifest(small_files()),
        prompts=dict.fromkeys(BUDGETS, "What now?"),
        structured_instruction=instruction,
        generation=Generation(BUDGETS, 5),
    )
    return ask.limits(manifest, names or tuple(BUDGETS))


def test_each_answer_has_the_bundles_budget_or_the_callers() -> None:
    assert limits(Ask()) == BUDGETS
    assert limits(Ask(max_new_tokens=np.int64(7))) == {"perception": 7, "planning": 7}
    assert limits(Ask(max_new_tokens={"planning": 40})) == {"perception": 152, "planning": 40}
    assert limits(Ask(max_new_tokens={"planning": 40}), "perception") == {"perception": 152}


def test_a_free_question_may_be_answered_as_long_as_the_longest() -> None:
    assert limits(Ask(question="Is it wet?"), "question") == {"question": 152}
    assert limits(Ask(question="Is it wet?", capabilities=["planning"]), "planning") == {"planning": 16}
    assert limits(Ask(question="Is it wet?", max_new_tokens={"question": 9}), "question") == {"question": 9}


def test_json_that_was_not_learnt_is_not_held_to_what_texts_taught() -> None:
    assert limits(Ask(structured=True)) == {"perception": 152, "planning": 64}
    assert limits(Ask(structured=True), instruction=" As JSON.") == BUDGETS
    assert limits(Ask(structured=True, max_new_tokens={"planning": 8}))["planning"] == 8


def test_budgets_of_unknown_capabilities_and_of_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="max_new_tokens: capability 'plannin' is unknown; this bundle has: perception"):
        limits(Ask(max_new_tokens={"plannin": 8}))
    for wrong in ({"planning": 0.5}, {"planning": None}, "8"):
        with pytest.raises(UsageError, match="expected a whole number, or one by capability"):
            Ask(max_new_tokens=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="an answer takes at least 1"):
        Ask(max_new_tokens={"planning": 0}).questions({"planning": "What now?"}, {})
