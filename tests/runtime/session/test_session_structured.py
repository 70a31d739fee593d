"""Structured answers of a tiny model: valid at every deadline, and the same however their forced tokens are read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import drivekd.runtime.session.triad as triad
from drivekd.errors import RunnerError
from drivekd.images import RGBImage
from drivekd.runtime import Answer, Session, load_bundle, read_bundle
from drivekd.runtime.answers.ask import GREEDY, Sampling
from drivekd.runtime.answers.cut_answers import structured_answer
from drivekd.runtime.answers.deadline import Cancelled, Deadline, Interruption
from drivekd.runtime.answers.grammar import Grammars
from drivekd.runtime.answers.schemas import ACTIONS, default_schemas, valid_answer
from drivekd.runtime.bundle.manifest import DIALECTS
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.engine.ort import BoundGraph, OrtRunner
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.sampling import Sampler
from drivekd.runtime.session.triad import Branch, branch, decode, opened

CAPABILITIES = ("perception", "reasoning", "planning")
SCHEMAS = default_schemas(("CAM_FRONT", "CAM_BACK"))
STEPS = 100
ATOL = 1e-4  # docs/design.md, "Exactness and tolerances"

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


@dataclass(frozen=True)
class Asker:
    """A model asked below a session, behind a prefix of text. grammars: of this tokenizer. calls: of the decoder, so far."""

    model: StartedModel
    grammars: Grammars
    prefix: Cache
    calls: list[str]

    def text(self, state: Branch) -> str:
        return self.model.prompts.decode(state.tokens)

    def ask(
        self,
        capabilities: tuple[str, ...] = CAPABILITIES,
        *,
        structured: bool = True,
        sampling: Sampling = GREEDY,
        **options: Any,
    ) -> dict[str, Branch]:
        self.calls.clear()
        branches = [opened(self.grammars.constraint(name) if structured else None) for name in capabilities]
        questions, prompts = self.model.questions(), self.model.prompts
        ids = [[*prompts.suffix(questions[name]), *state.tokens] for name, state in zip(capabilities, branches, strict=True)]
        logits, cache = branch(self.model.decoder, self.prefix, ids, room=STEPS)
        self.calls.clear()  # of the decoding alone
        settings: dict[str, Any] = {
            "stop_id": self.model.manifest.generation.end_of_turn_id,
            "max_new_tokens": STEPS,
            "deadline": Deadline(),
            "on_token": lambda row, state: None,
            "sampler": Sampler(sampling, capabilities),
        }
        found = decode(self.model.decoder, logits, cache, branches=branches, **{**settings, **options})
        return dict(zip(capabilities, found, strict=True))


@pytest.fixture(scope="module", params=DIALECTS)
def asker(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Asker]:
    with StartedModel(read_bundle(bundle), threads=1, dialect=request.param) as model:
        manifest = model.manifest
        tokenizer = read_bundle(bundle).files["tokenizer.json"]
        grammars = Grammars(tokenizer, manifest.model.vocab_size, manifest.generation.end_of_turn_id, SCHEMAS)
        _, prefix = model.decoder.read([model.prompts.prefix(1)], model.decoder.empty_cache())
        calls: list[str] = []
        count_calls(model.decoder, calls)
        yield Asker(model, grammars, prefix, calls)


def count_calls(decoder: Any, calls: list[str]) -> None:
    """Every run of the decoder's graph, in whichever dialect."""
    name = "_call" if hasattr(decoder, "_call") else "_forward"
    function = getattr(decoder, name)

    def counting(*arguments: Any) -> Any:
        calls.append(name)
        return function(*arguments)

    setattr(decoder, name, counting)


def never(num_tokens: int, num_rows: int) -> bool:
    return False


def always(num_tokens: int, num_rows: int) -> bool:
    return num_tokens > 1


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, 0.95, seed=4), Sampling(2.0, seed=9)])
@pytest.mark.parametrize("rule", [always, triad.reads_ahead])
def test_reading_forced_tokens_ahead_changes_nothing_but_the_calls(
    asker: Asker, sampling: Sampling, rule: Callable[[int, int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triad, "reads_ahead", never)
    one_by_one, slow_calls = asker.ask(sampling=sampling), len(asker.calls)
    monkeypatch.setattr(triad, "reads_ahead", rule)
    ahead = asker.ask(sampling=sampling)
    for name in CAPABILITIES:
        assert ahead[name].tokens == one_by_one[name].tokens
        assert ahead[name].forced == one_by_one[name].forced
        np.testing.assert_allclose(ahead[name].logprobs, one_by_one[name].logprobs, atol=ATOL)
    assert slow_calls >= max(len(state.logprobs) for state in one_by_one.values()) - 1
    # concat reads a step's runs in one call; gqa pays one for each row, which `always` does not weigh
    assert rule is always or len(asker.calls) <= slow_calls + STEPS // 10


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def chosen_places(asker: Asker, name: str, state: Branch) -> list[int]:
    """Places of the tokens that the grammar left to the model, found by a constraint that follows the answer."""
    constraint = asker.grammars.constraint(name)
    end, places = len(constraint.opening()), []
    while end < len(state.tokens):
        places.append(end)
        constraint.accept(state.tokens[end])
        end += 1 + len(constraint.forced())
    return places


@pytest.mark.parametrize("capabilities", [CAPABILITIES, *((name,) for name in CAPABILITIES)])
def test_every_token_was_read_forced_or_not(asker: Asker, capabilities: tuple[str, ...]) -> None:
    """The slow obvious way, which knows no grammar: the whole answer is fed token by token, and predicts what was chosen."""
    for name, state in asker.ask(capabilities, sampling=Sampling(0.8, seed=4), max_new_tokens=40).items():
        question = asker.model.prompts.suffix(asker.model.questions()[name])
        tokens = np.asarray(state.tokens)[:, None]  # [N, B = 1]
        logits = triad.forced_logits(asker.model.decoder, asker.prefix, [question], tokens)[:, 0]  # [N, V]
        places = chosen_places(asker, name, state)
        expected = log_softmax(logits)[places, tokens[places, 0]]
        assert len(places) + state.forced == len(state.tokens)
        np.testing.assert_allclose(state.logprobs, expected, atol=ATOL)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_lone_row_makes_one_call_a_chosen_token(asker: Asker, capability: str) -> None:
    state = asker.ask((capability,))[capability]
    assert len(asker.calls) == len(state.logprobs) - 1  # none behind the last
    assert len(state.tokens) == len(state.logprobs) + state.forced
    assert state.forced > 3


def test_a_capability_alone_is_answered_as_in_the_triad(asker: Asker) -> None:
    for sampling in (GREEDY, Sampling(0.8, 0.95, seed=2)):
        together = asker.ask(sampling=sampling)
        for name in CAPABILITIES:
            alone = asker.ask((name,), sampling=sampling)[name]
            assert alone.tokens == together[name].tokens
            np.testing.assert_allclose(alone.logprobs, together[name].logprobs, atol=ATOL)


def test_the_sampling_is_not_vacuous(asker: Asker) -> None:
    settings = (GREEDY, Sampling(1.0, seed=1), Sampling(1.0, seed=2))
    found = [{name: tuple(state.tokens) for name, state in asker.ask(sampling=each).items()} for each in settings]
    assert len({tuple(answers.values()) for answers in found}) == 3
    assert found[1] == {name: tuple(state.tokens) for name, state in asker.ask(sampling=settings[1]).items()}


@pytest.mark.parametrize("seed", range(6))
def test_every_answer_is_valid_and_the_ended_ones_are_complete(asker: Asker, seed: int) -> None:
    for name, state in asker.ask(sampling=Sampling(1.0, seed=seed)).items():
        assert state.finish_reason in ("stop", "length")
        text, found, complete = structured_answer(SCHEMAS[name], asker.text(state), state.finish_reason)
        assert valid_answer(SCHEMAS[name], found) is None
        assert json.loads(text) == found
        assert complete == (state.finish_reason == "stop") == found["complete"]
        if complete:
            assert text == asker.text(state)


def test_the_log_probabilities_are_the_models_own(asker: Asker) -> None:
    """Of a first token that the grammar decided, against the logits of the same prompt without one."""
    state = asker.ask(("planning",), max_new_tokens=1)["planning"]
    prompts = asker.model.prompts
    ids = [*prompts.suffix(asker.model.questions()["planning"]), *asker.grammars.constraint("planning").opening()]
    logits, _ = branch(asker.model.decoder, asker.prefix, [ids])
    wide = logits[0].astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    chosen = state.tokens[len(asker.grammars.constraint("planning").opening())]
    assert state.logprobs == pytest.approx([expected[chosen]], abs=1e-5)  # exp in float32
    assert chosen != wide.argmax(), "the grammar had to decide"


@pytest.mark.parametrize("structured", [False, True])
def test_free_text_and_json_end_at_their_length(asker: Asker, structured: bool) -> None:
    for limit in (1, 7, 30):
        for state in asker.ask(structured=structured, max_new_tokens=limit).values():
            assert state.finish_reason == "length" or state.tokens[-1:] != [] or not structured
            if not structured:
                assert len(state.tokens) == limit or state.finish_reason == "stop"
                assert state.forced == 0 and len(state.logprobs) == len(state.tokens)


class Clock(Deadline):
    """Time moves with engine calls only: expired after `allowed` of them."""

    def __init__(self, calls: list[str], allowed: int) -> None:
        super().__init__()
        self._calls, self._allowed = calls, allowed

    def interruption(self) -> Interruption | None:
        return "deadline" if len(self._calls) >= self._allowed else None


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=3)])
def test_whichever_call_passes_the_deadline_is_the_last(asker: Asker, sampling: Sampling) -> None:
    """At every deadline: a valid answer, which says no more than the whole one does."""
    full = {name: asker.text(state) for name, state in asker.ask(sampling=sampling, max_new_tokens=40).items()}
    num_calls = len(asker.calls)
    for allowed in range(num_calls + 1):
        asked = asker.ask(sampling=sampling, max_new_tokens=40, deadline=Clock(asker.calls, allowed))
        assert len(asker.calls) <= allowed
        for name, state in asked.items():
            assert state.finish_reason is not None
            assert full[name].startswith(asker.text(state).rstrip("\ufffd"))
            _, found, _ = structured_answer(SCHEMAS[name], asker.text(state), state.finish_reason)
            assert valid_answer(SCHEMAS[name], found) is None
            if name == "planning" and found["actions"] is not None:
                assert all(action in ACTIONS and f'"{action}"' in full[name] for action in found["actions"])


def test_cancelling_ends_the_answers(asker: Asker) -> None:
    asked = asker.ask(deadline=Deadline(None, lambda: len(asker.calls) >= 5))
    assert len(asker.calls) == 5
    assert {state.finish_reason for state in asked.values()} == {"cancelled"}


def test_text_is_streamed_as_it_is_generated(asker: Asker) -> None:
    rounds: dict[int, list[str]] = {row: [] for row in range(3)}
    found = asker.ask(on_token=lambda row, state: rounds[row].append(asker.text(state)))
    for row, name in enumerate(CAPABILITIES):
        texts = rounds[row]
        assert texts[-1] == asker.text(found[name])
        assert len(set(texts)) > 5
        for before, after in pairwise(texts):
            assert after.startswith(before.rstrip("\ufffd"))


def test_a_broken_engine_stops_structured_answers_too(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    real = asker.model.decoder.step

    def broken(tokens: Any, cache: Cache) -> Any:
        logits, longer = real(tokens, cache)
        logits[0, 0] = np.nan
        return logits, longer

    monkeypatch.setattr(asker.model.decoder, "step", broken)
    with pytest.raises(RunnerError, match="not finite"):
        asker.ask(structured=False)


@pytest.mark.parametrize("frames", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_deadlines(bundle: Path, images: dict[str, RGBImage], frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer fits its schema, and no frame waits for more than the one engine call that its deadline passed in."""
    deadlines, ends, lateness_ms = recorded_deadlines(monkeypatch), recorded_ends(monkeypatch), []
    rng = np.random.default_rng(0)
    with load_bundle(bundle, threads=1) as session:
        far_ms = 1.5 * whole_frame_ms(session, images)
        for frame in range(frames):
            changed = {name: np.roll(image, int(rng.integers(3)), axis=1) for name, image in images.items()}
            ends.clear()
            limit_ms = 0.0 if frame % 20 == 0 else float(rng.uniform(0, far_ms))
            answers = session.answer(changed, structured=True, deadline_ms=limit_ms, max_new_tokens=24)
            assert_structured(session, answers)
            late = [end for end in ends if end > deadlines[-1]]
            assert len(late) <= 1, f"{len(late)} engine calls after a deadline of {limit_ms} ms"
            if any(answer.finish_reason == "deadline" for answer in answers.values()):
                lateness_ms.append(session.timings_ms["total"] - limit_ms)
    assert 0 < len(lateness_ms) < frames
    print(f"{frames} frames, {len(lateness_ms)} cut; ms after the deadline:", end=" ")
    print(", ".join(f"p{q:g} {np.percentile(lateness_ms, q):.2f}" for q in (50, 95, 99, 99.9, 100)))


def whole_frame_ms(session: Session, images: dict[str, RGBImage]) -> float:
    """Of a warm session, with new images each time."""
    found = []
    for shift in range(5):
        shifted = {name: np.roll(image, shift, axis=0) for name, image in images.items()}
        session.answer(shifted, structured=True, max_new_tokens=24)
        found.append(session.timings_ms["total"])
    return float(np.median(found))


def recorded_deadlines(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each deadline passes, in seconds of perf_counter."""
    found: list[float] = []
    make = Deadline.__init__

    def recording(self: Any, limit_ms: float | None = None, cancelled: Cancelled | None = None) -> None:
        make(self, limit_ms, cancelled)
        found.append(self._start + (np.inf if limit_ms is None else limit_ms / 1000))

    monkeypatch.setattr(Deadline, "__init__", recording)
    return found


def recorded_ends(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each engine call has ended."""
    found: list[float] = []

    def recording(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            found.append(time.perf_counter())
            return result

        return call

    monkeypatch.setattr(BoundGraph, "run", recording(BoundGraph.run))
    monkeypatch.setattr(OrtRunner, "infer", recording(OrtRunner.infer))
    return found


def assert_structured(session: Session, answers: dict[str, Answer]) -> None:
    for name, answer in answers.items():
        assert answer.structured is not None
        assert valid_answer(session.schemas[name], answer.structured) is None
        assert json.loads(answer.text) == answer.structured
        assert answer.complete == answer.structured["complete"] == (answer.finish_reason == "stop")
