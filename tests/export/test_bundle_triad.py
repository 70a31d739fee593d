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
from drivekd.runtime import Session, load_bundle, read_bundle
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.engine.ort import BoundGraph
from drivekd.runtime.session.sampling import top2_margin
from drivekd.runtime.session.triad import branch, decode

pytestmark = pytest.mark.numerics

Images = dict[str, RGBImage]
STEPS = 12
NO_TOKEN = -1


def separate_logits(session: Session, images: Images, question: str, tokens: list[int]) -> Any:
    """The slow obvious way: the whole prompt in one piece, one row, for every token anew. [N, V]"""
    ids = np.asarray([session.prompt_ids(len(images), question)])  # [1, P]
    embeds = session.decoder.embed(ids)
    embeds[ids == session.prompts.image_token_id] = session.image_embeds(images).reshape(-1, embeds.shape[-1])
    rows = []
    for count in range(len(tokens)):
        answer = session.decoder.embed(np.asarray([tokens[:count]], np.int64))
        logits, _ = session.decoder.forward(np.concatenate([embeds, answer], axis=1), session.decoder.empty_cache())
        rows.append(logits[0])
    return np.stack(rows)


def free_run(session: Session, images: Images, questions: list[str]) -> list[list[int]]:
    prefix = session.prefix.read(list(images.values()), Deadline())
    assert prefix is not None
    logits, cache = branch(session.decoder, prefix, [session.prompts.suffix(question) for question in questions])
    branches = decode(
        session.decoder,
        logits,
        cache,
        stop_id=NO_TOKEN,
        max_new_tokens=STEPS,
        deadline=Deadline(),
        on_token=lambda row, state: None,
    )
    return [state.tokens for state in branches]


def tiles(session: Session, seed: int) -> Images:
    size = session.manifest.images.size_px
    return {f"camera_{i}": image for i, image in enumerate(_noise(seed, size))}


def _noise(seed: int, size_px: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (2, size_px, size_px, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_the_triad_equals_three_separate_runs(session: Session, seed: int) -> None:
    images, questions = tiles(session, seed), list(session.questions().values())
    tokens = free_run(session, images, questions)
    found = session.forced_logits(images, questions, np.asarray(tokens).T)  # [N, B, V]
    for index, question in enumerate(questions):
        expected = separate_logits(session, images, question, tokens[index])
        assert np.abs(found[:, index] - expected).max() <= 1e-4  # docs/design.md, "Exactness and tolerances"
        clear = top2_margin(expected) > 1e-3
        assert (expected.argmax(-1) == tokens[index])[clear].all()
        assert clear.any()


def test_the_test_model_is_not_vacuous(session: Session) -> None:
    """Answers differ with the images and with the question."""
    questions = list(session.questions().values())
    first, second = (free_run(session, tiles(session, seed), questions) for seed in (0, 1))
    assert first != second
    assert len({tuple(tokens) for tokens in first}) == 3
    assert all(len(set(tokens)) > 2 for tokens in first)


def test_a_question_does_not_see_its_neighbours(session: Session, images: Images) -> None:
    together = session.answer(images, max_new_tokens=STEPS)
    for capability in session.capabilities:
        session.prefix.forget()
        alone = session.answer(images, capabilities=[capability], max_new_tokens=STEPS)
        assert alone[capability].text == together[capability].text
        assert alone[capability].mean_logprob == pytest.approx(together[capability].mean_logprob, abs=1e-4)


def test_a_branch_that_ended_leaves_the_others_alone(bundle: Path, session: Session, images: Images) -> None:
    """Make a token of one answer the end of turn: it ends there, and the others go on as they would."""
    questions = list(session.questions().values())
    frame = tiles(session, 0)
    tokens = free_run(session, frame, questions)
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
        session.prompts.decode(part) for part in (tokens[0][:stop_at], tokens[1], tokens[2])
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

    monkeypatch.setattr(session.vision, "infer", count("vision", session.vision.infer))
    monkeypatch.setattr(session.decoder._runner, "infer", count("decoder", session.decoder._runner.infer))
    monkeypatch.setattr(BoundGraph, "run", count("decoder", BoundGraph.run))
    return calls


def test_many_questions_about_one_frame_read_it_once(session: Session, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = {}
    for question in ("What is near?", "Where to go?"):
        session.prefix.forget()
        fresh[question] = session.answer_question(images, question, max_new_tokens=1).mean_logprob
    session.prefix.forget()
    calls = counted(session, monkeypatch)
    for question in ("What is near?", "Where to go?", "What is near?"):
        assert session.answer_question(images, question, max_new_tokens=1).mean_logprob == fresh[question]
    prefix = ["decoder"] * (1 + len(images))  # the system prompt, then image by image
    assert calls == ["vision", "vision", *prefix, *["decoder"] * 3]


def test_the_kept_prefix_is_dropped_when_an_image_changes(
    session: Session, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = session.prefill_logits(images, "What is near?")
    images["CAM_BACK"][:] = 255 - images["CAM_BACK"]  # in place, as a camera driver reuses its buffer
    calls = counted(session, monkeypatch)
    changed = session.prefill_logits(images, "What is near?")
    assert calls.count("vision") == 1, "the other image is the same"
    session.prefix.forget()
    assert np.array_equal(changed, session.prefill_logits(images, "What is near?"))
    assert not np.allclose(before, changed)
    assert session.prefill_logits({"CAM_BACK": images["CAM_BACK"]}, "What is near?").shape == before.shape


def test_a_tile_sized_buffer_may_be_reused(session: Session) -> None:
    """An image that needs no resizing must not be kept by reference."""
    images = tiles(session, 3)
    before = session.prefill_logits(images, "What is near?")
    images["camera_0"][:] = 0
    assert not np.array_equal(before, session.prefill_logits(images, "What is near?"))


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
    monkeypatch.setattr(session.prompts, "decode", lambda tokens: "C. Brake. Reason: red.")
    answer = session.answer_question(images, "What next?", max_new_tokens=1)
    assert answer.fields == {"choice": "C", "answer": "Brake", "reason": "red"}


def test_variables_reach_the_question(session: Session) -> None:
    assert "drives at 8 m/s" in session.questions()["planning"]
    assert "drives at 3.5 m/s" in session.questions({"ego_speed_mps": 3.5})["planning"]


def test_nan_in_the_engine_stops_the_answer(session: Session, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = session.decoder.forward

    def broken(*args: Any, **kwargs: Any) -> tuple[Any, Cache]:
        logits, cache = forward(*args, **kwargs)
        return logits * np.float32(np.nan), cache

    monkeypatch.setattr(session.decoder, "forward", broken)
    with pytest.raises(RunnerError, match="not finite"):
        session.answer(images)


def test_a_closed_session_says_so(bundle: Path, images: Images) -> None:
    with load_bundle(bundle, threads=1) as session:
        assert session.backend == "ort-cpu"
        assert session.bundle_digest == "sha256:" + (bundle / "bundle.sha256").read_text().strip()
    session.close()
    with pytest.raises(RunnerError, match="closed"):
        session.answer(images)
