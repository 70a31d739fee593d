"""Three questions from one prefill answer like three separate runs, and a session keeps its promises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivekd.errors import DataError, RunnerError, UsageError
from drivekd.images import RGBImage
from drivekd.runtime import Ask, Session, load_bundle, read_bundle
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.engine.ort import BoundGraph
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.sampling import top2_margin
from drivekd.runtime.session.triad import branch, decode

pytestmark = pytest.mark.numerics

Images = dict[str, RGBImage]
STEPS = 12
NO_TOKEN = -1


def separate_logits(model: StartedModel, images: Images, question: str, tokens: list[int]) -> Any:
    """The slow obvious way: the whole prompt in one piece, one row, for every token anew. [N, V]"""
    ids = np.asarray([model.prompt_ids(len(images), question)])  # [1, P]
    embeds = model.decoder.embed(ids)
    embeds[ids == model.prompts.image_token_id] = model.prefix.image_embeds(list(model.tiles(images).values())).reshape(
        -1, embeds.shape[-1]
    )
    rows = []
    for count in range(len(tokens)):
        answer = model.decoder.embed(np.asarray([tokens[:count]], np.int64))
        logits, _ = model.decoder.forward(np.concatenate([embeds, answer], axis=1), model.decoder.empty_cache())
        rows.append(logits[0])
    return np.stack(rows)


def free_run(model: StartedModel, images: Images, questions: list[str]) -> list[list[int]]:
    logits, cache = branch(model.decoder, model.read(images), [model.prompts.suffix(question) for question in questions])
    branches = decode(
        model.decoder,
        logits,
        cache,
        stop_id=NO_TOKEN,
        max_new_tokens=STEPS,
        deadline=Deadline(),
        on_token=lambda row, state: None,
    )
    return [state.tokens for state in branches]


def tiles(model: StartedModel, seed: int) -> Images:
    size = model.manifest.images.size_px
    return {f"camera_{i}": image for i, image in enumerate(_noise(seed, size))}


def first_logits(model: StartedModel, images: Images, question: str) -> Any:
    """Logits [V] of the first answer token to a literal question."""
    return model.forced_logits(model.tiles(images), [question], np.zeros((1, 1), np.int64))[0, 0]


def _noise(seed: int, size_px: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (2, size_px, size_px, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_the_triad_equals_three_separate_runs(session: Session, seed: int) -> None:
    images, questions = tiles(session.model, seed), list(session.model.questions().values())
    tokens = free_run(session.model, images, questions)
    found = session.model.forced_logits(images, questions, np.asarray(tokens).T)  # [N, B, V]
    for index, question in enumerate(questions):
        expected = separate_logits(session.model, images, question, tokens[index])
        assert np.abs(found[:, index] - expected).max() <= 1e-4  # docs/design.md, "Exactness and tolerances"
        clear = top2_margin(expected) > 1e-3
        assert (expected.argmax(-1) == tokens[index])[clear].all()
        assert clear.any()


def test_the_test_model_is_not_vacuous(session: Session) -> None:
    """Answers differ with the images and with the question."""
    questions = list(session.model.questions().values())
    first, second = (free_run(session.model, tiles(session.model, seed), questions) for seed in (0, 1))
    assert first != second
    assert len({tuple(tokens) for tokens in first}) == 3
    assert all(len(set(tokens)) > 2 for tokens in first)


def test_a_question_does_not_see_its_neighbours(session: Session, images: Images) -> None:
    together = session.answer(images, max_new_tokens=STEPS)
    for capability in session.capabilities:
        session.model.prefix.forget()
        alone = session.answer(images, capabilities=[capability], max_new_tokens=STEPS)
        assert alone[capability].text == together[capability].text
        assert alone[capability].mean_logprob == pytest.approx(together[capability].mean_logprob, abs=1e-4)


def test_a_branch_that_ended_leaves_the_others_alone(bundle: Path, session: Session, images: Images) -> None:
    """Make a token of one answer the end of turn: it ends there, and the others go on as they would."""
    questions = list(session.model.questions().values())
    frame = tiles(session.model, 0)
    tokens = free_run(session.model, frame, questions)
    stop_id, stop_at = next(
        (token, place)
        for place, token in enumerate(tokens[0])
        if place > 0 and token not in tokens[0][:place] and token not in tokens[1] + tokens[2]
    )
    read = read_bundle(bundle)
    generation = dataclasses.replace(read.manifest.generation, end_of_turn_id=stop_id)
    with Session(dataclasses.replace(read, manifest=dataclasses.replace(read.manifest, generation=generation))) as stopping:
        answers = list(stopping.answer(frame, max_new_tokens=STEPS).values())
    assert [answer.finish_reason for answer in answers] == ["stop", "length", "length"]
    assert [answer.tokens for answer in answers] == [stop_at, STEPS, STEPS]
    assert [answer.text for answer in answers] == [
        session.model.prompts.decode(part) for part in (tokens[0][:stop_at], tokens[1], tokens[2])
    ]
    assert [answer.valid for answer in answers] == [bool(answers[0].text.strip()), False, False]


def test_streamed_pieces_concatenate_to_the_text(session: Session, images: Images) -> None:
    pieces: dict[str, str] = dict.fromkeys(session.capabilities, "")

    def collect(capability: str, piece: str) -> None:
        pieces[capability] += piece

    answers = session.answer(images, max_new_tokens=STEPS, on_text=collect)
    assert pieces == {capability: answer.text for capability, answer in answers.items()}
    assert any(pieces.values())


def counted(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the engine calls as they happen."""
    calls: list[str] = []

    def count(name: str, infer: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: calls.append(name) or infer(*args)

    monkeypatch.setattr(session.model.vision, "infer", count("vision", session.model.vision.infer))
    monkeypatch.setattr(session.model.decoder._runner, "infer", count("decoder", session.model.decoder._runner.infer))
    monkeypatch.setattr(BoundGraph, "run", count("decoder", BoundGraph.run))
    return calls


def test_many_questions_about_one_frame_read_it_once(session: Session, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = {}
    for question in ("What is near?", "Where to go?"):
        session.model.prefix.forget()
        fresh[question] = session.answer_question(images, question, max_new_tokens=1).mean_logprob
    session.model.prefix.forget()
    calls = counted(session, monkeypatch)
    for question in ("What is near?", "Where to go?", "What is near?"):
        assert session.answer_question(images, question, max_new_tokens=1).mean_logprob == fresh[question]
    prefix = ["decoder"] * (1 + len(images))  # the system prompt, then image by image
    assert calls == ["vision", "vision", *prefix, *["decoder"] * 3]


def test_the_kept_prefix_is_dropped_when_an_image_changes(
    session: Session, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = first_logits(session.model, images, "What is near?")
    images["CAM_BACK"][:] = 255 - images["CAM_BACK"]  # in place, as a camera driver reuses its buffer
    calls = counted(session, monkeypatch)
    changed = first_logits(session.model, images, "What is near?")
    assert calls.count("vision") == 1, "the other image is the same"
    session.model.prefix.forget()
    assert np.array_equal(changed, first_logits(session.model, images, "What is near?"))
    assert not np.allclose(before, changed)
    assert first_logits(session.model, {"CAM_BACK": images["CAM_BACK"]}, "What is near?").shape == before.shape


def test_a_tile_sized_buffer_may_be_reused(session: Session) -> None:
    """An image that needs no resizing must not be kept by reference."""
    images = tiles(session.model, 3)
    before = first_logits(session.model, images, "What is near?")
    images["camera_0"][:] = 0
    assert not np.array_equal(before, first_logits(session.model, images, "What is near?"))


def test_deadline_zero_calls_no_engine(session: Session, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(session, monkeypatch)
    answers = session.answer(images, deadline_ms=0)
    assert calls == []
    assert set(session.counts.values()) == {0}
    assert {answer.finish_reason for answer in answers.values()} == {"deadline"}
    assert {(answer.text, answer.valid, answer.tokens) for answer in answers.values()} == {("", False, 0)}


def test_timings_cover_the_call(session: Session, images: Images) -> None:
    session.answer(images, max_new_tokens=4)
    timings = session.timings_ms
    assert set(timings) == {"vision", "prefill", "questions", "decode", "ttft", "total", *session.capabilities}
    stages = sum(timings[stage] for stage in ("vision", "prefill", "questions", "decode"))
    assert 0 < stages <= timings["total"]
    assert timings["ttft"] <= min(timings[capability] for capability in session.capabilities) <= timings["total"]
    session.answer(images, max_new_tokens=4)
    assert session.timings_ms["vision"] == session.timings_ms["prefill"] == 0.0


@pytest.mark.parametrize("marker", ["<IMG_CONTEXT>", "<|im_end|>", "<img>", "</img>"])
def test_chat_markers_in_a_question_are_refused(session: Session, images: Images, marker: str) -> None:
    with pytest.raises(UsageError, match="chat marker"):
        session.answer_question(images, f"What is {marker} near?")


def test_wrong_requests_name_what_would_be_right(session: Session, images: Images) -> None:
    with pytest.raises(UsageError, match="capability 'steering' is unknown; this bundle has: perception, reasoning, planning"):
        session.answer(images, capabilities=["steering"])
    with pytest.raises(UsageError, match="no capability asked"):
        session.answer(images, capabilities=[])
    with pytest.raises(UsageError, match="variable 'speed' is unknown"):
        session.answer(images, variables={"speed": 3})
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        session.answer(images, max_new_tokens=0)
    with pytest.raises(UsageError, match="the model has 1024 positions"):
        session.answer(images, max_new_tokens=2000)
    with pytest.raises(UsageError, match="one free question is asked under one capability, got 2"):
        session.answer(images, question="Why?", capabilities=["planning", "reasoning"])
    with pytest.raises(UsageError, match="no images"):
        session.answer({})
    with pytest.raises(DataError, match="CAM_FRONT: image of size zero"):
        session.answer({"CAM_FRONT": np.zeros((0, 4, 3), np.uint8)})


def test_a_free_question_goes_under_the_capability_named(session: Session, images: Images) -> None:
    assert list(session.answer(images, question="Why?", max_new_tokens=1)) == ["question"]
    assert list(session.answer(images, question="Why?", capabilities=["planning"], max_new_tokens=1)) == ["planning"]


def test_fields_come_from_the_text(session: Session, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.model.prompts, "decode", lambda tokens: "C. Brake. Reason: red.")
    answer = session.answer_question(images, "What next?", max_new_tokens=1)
    assert answer.fields == {"choice": "C", "answer": "Brake", "reason": "red"}


def test_variables_reach_the_question(session: Session) -> None:
    assert "drives at 8 m/s" in session.model.questions()["planning"]
    asked = Ask(variables={"ego_speed_mps": 3.5}).questions(session.manifest.prompts, session.variables)
    assert "drives at 3.5 m/s" in asked["planning"]


def test_nan_in_the_engine_stops_the_answer(session: Session, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = session.model.decoder.forward

    def broken(*args: Any, **kwargs: Any) -> tuple[Any, Cache]:
        logits, cache = forward(*args, **kwargs)
        return logits * np.float32(np.nan), cache

    monkeypatch.setattr(session.model.decoder, "forward", broken)
    with pytest.raises(RunnerError, match="not finite"):
        session.answer(images)


def test_a_closed_session_says_so(bundle: Path, images: Images) -> None:
    with load_bundle(bundle, threads=1) as session:
        assert session.backend == "ort-cpu"
        assert session.bundle_digest == "sha256:" + (bundle / "bundle.sha256").read_text().strip()
    session.close()
    with pytest.raises(RunnerError, match="closed"):
        session.answer(images)
