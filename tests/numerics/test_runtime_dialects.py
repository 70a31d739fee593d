"""Both families in both dialects: the same answers as torch gives, one prompt at a time, however K/V is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dialect_exports import FAMILIES, Exported, bundle_of, exported_family
from numpy.typing import NDArray

import drivekd.runtime.prefix as prefix_module
from drivekd.errors import BundleError, RunnerError, UsageError
from drivekd.export.plan import GraphPlan
from drivekd.export.quantization import convert
from drivekd.images import RGBImage
from drivekd.models import encode_images, language_model, rotary_positions
from drivekd.runtime.arena import ArenaCache
from drivekd.runtime.bundle import Bundle
from drivekd.runtime.deadline import Deadline
from drivekd.runtime.decoder import Cache, DeadlineExpiredError
from drivekd.runtime.golden import golden_images, record_golden, replay_golden
from drivekd.runtime.manifest import DIALECTS
from drivekd.runtime.ort import BoundGraph
from drivekd.runtime.sampling import top2_margin
from drivekd.runtime.session import Session
from drivekd.runtime.triad import Branch, branch, decode

STEPS = 10
NO_TOKEN = -1  # stops nothing
ATOL = 1e-4  # DESIGN: exactness of the triad in fp32; found 1e-5

Images = dict[str, RGBImage]


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_family(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture(scope="module", params=DIALECTS)
def shared_session(request: pytest.FixtureRequest, exported: Exported) -> Iterator[Session]:
    with Session(exported.bundle, threads=1, dialect=request.param) as session:
        yield session


@pytest.fixture
def session(shared_session: Session) -> Session:
    """Without a kept prefix, so that tests do not depend on their order."""
    shared_session.prefix.forget()
    return shared_session


@pytest.fixture
def images(exported: Exported) -> Images:
    return golden_images(exported.bundle.manifest.images.tile_px)


def read_prefix(session: Session, images: Images) -> Cache:
    cache = session.prefix.read(images, Deadline())
    assert cache is not None
    return cache


def suffixes(session: Session) -> list[list[int]]:
    return [session.prompts.suffix(question) for question in session.questions().values()]


def free_run(session: Session, images: Images, **options: Any) -> NDArray[np.int64]:
    """Greedy tokens [N, B]."""
    logits, cache = branch(session.decoder, read_prefix(session, images), suffixes(session), **options)
    return np.asarray([state.tokens for state in greedy(session, logits, cache, STEPS)]).T


def greedy(session: Session, logits: Any, cache: Cache, steps: int, stop_id: int = NO_TOKEN) -> list[Branch]:
    return decode(
        session.decoder,
        logits,
        cache,
        stop_id=stop_id,
        max_new_tokens=steps,
        deadline=Deadline(),
        on_token=lambda row, state: None,
    )


@torch.no_grad()
def torch_logits(exported: Exported, images: Images, question: str, tokens: Sequence[int]) -> NDArray[np.float32]:
    """The slow obvious way: image, prompt and answer through the torch model in one piece. [N, V]"""
    processor, model = exported.source.processor, exported.model
    prefix = processor.prompts.prefix(len(images))
    ids = [*prefix, *processor.prompts.suffix(question), *tokens[:-1]]
    positions = processor.prefix_positions(prefix)  # [A, P]
    text = positions.max() + 1 + np.arange(len(ids) - len(prefix))
    positions = np.concatenate([positions, np.tile(text, (len(positions), 1))], axis=1)
    pixel_values = np.stack([processor.normalize(processor.resize(image)) for image in images.values()])
    embeds = model.get_input_embeddings()(torch.tensor([ids])).clone()
    places = torch.tensor([ids]) == processor.prompts.image_token_id
    embeds[places] = encode_images(model, torch.from_numpy(pixel_values)).flatten(0, 1)
    hidden = language_model(model)(
        inputs_embeds=embeds,
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        position_ids=rotary_positions(model, torch.from_numpy(positions[:, None])),
    ).last_hidden_state
    found: NDArray[np.float32] = model.lm_head(hidden)[0, -len(tokens) :].numpy()
    return found


@pytest.mark.usefixtures("one_thread")
def test_the_triad_equals_three_runs_of_torch(exported: Exported, session: Session, images: Images) -> None:
    tokens = free_run(session, images)  # [N, B]
    questions = list(session.questions().values())
    found = session.forced_logits(images, questions, tokens)  # [N, B, V]
    for row, question in enumerate(questions):
        expected = torch_logits(exported, images, question, tokens[:, row].tolist())
        assert np.abs(found[:, row] - expected).max() <= ATOL
        clear = top2_margin(expected) > 1e-3
        assert clear.any()
        assert (expected.argmax(-1) == tokens[:, row])[clear].all()


def test_the_model_is_not_vacuous(session: Session, images: Images) -> None:
    tokens = free_run(session, images)
    assert len({tuple(row) for row in tokens.T}) == 3
    other = free_run(session, {name: 255 - image for name, image in images.items()})
    assert not np.array_equal(tokens, other)


def test_one_question_alone_is_answered_as_in_the_triad(session: Session, images: Images) -> None:
    together = session.answer(images, max_new_tokens=STEPS)
    for capability in session.capabilities:
        alone = session.answer(images, capabilities=[capability], max_new_tokens=STEPS)[capability]
        assert alone.text == together[capability].text
        assert alone.mean_logprob == pytest.approx(together[capability].mean_logprob, abs=ATOL)


def test_positions_are_the_processors(exported: Exported, session: Session, images: Images) -> None:
    """Behind images text goes on at the largest position plus 1, which is fewer than there are tokens in Qwen2.5-VL."""
    processor = exported.source.processor
    positions = processor.prefix_positions(processor.prompts.prefix(len(images)))
    cache = read_prefix(session, images)
    assert cache.num_tokens.tolist() == [positions.shape[1]]
    assert cache.next_positions.tolist() == [positions.max() + 1]
    assert (cache.next_positions < cache.num_tokens).all() == (len(positions) == 3)
    questions = suffixes(session)
    _, longer = branch(session.decoder, cache, questions)
    expected = positions.max() + 1 + np.asarray([len(ids) for ids in questions])
    assert longer.next_positions.tolist() == expected.tolist()
    _, longer = session.decoder.step([1, 2, 3], longer)
    assert longer.next_positions.tolist() == (expected + 1).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_a_prefix_read_in_chunks_is_the_same(session: Session, images: Images, chunk: int, monkeypatch: Any) -> None:
    tokens = free_run(session, images)
    whole = session.forced_logits(images, list(session.questions().values()), tokens)
    session.prefix.forget()
    monkeypatch.setattr(prefix_module, "CHUNK", chunk)
    parts = session.forced_logits(images, list(session.questions().values()), tokens)
    assert np.abs(parts - whole).max() <= ATOL


def test_no_room_only_costs_copies(session: Session, images: Images) -> None:
    """An arena that is full at the first step grows on the way; tensors that grow anyway do not care."""
    prefix = read_prefix(session, images)
    questions = suffixes(session)
    runs = []
    for room in (-max(map(len, questions)), 0, 1, STEPS, 200):
        logits, cache = branch(session.decoder, prefix, questions, room=room)
        capacity = cache.arena.capacity if isinstance(cache, ArenaCache) else 0
        steps = [logits]
        for _ in range(STEPS):
            logits, cache = session.decoder.step([1, 2, 3], cache)
            steps.append(logits)
        runs.append(np.stack(steps))
        if isinstance(cache, ArenaCache) and room == 200:
            assert cache.arena.capacity == capacity, "it grew without need"
    for run in runs[1:]:
        assert np.abs(run - runs[0]).max() <= ATOL


@pytest.mark.parametrize("going", [[0], [1], [2], [0, 1], [0, 2], [1, 2]])
def test_rows_that_go_on_do_not_notice(session: Session, images: Images, going: list[int]) -> None:
    prefix, questions = read_prefix(session, images), suffixes(session)
    assert len({len(question) for question in questions}) > 1, "rows of different lengths"
    _, cache = branch(session.decoder, prefix, questions)
    _, cache = session.decoder.step([5, 6, 7], cache)
    lengths = cache.num_tokens[going].tolist()
    rows = [cache.kv(row) for row in going]
    compacted = cache.compact(going)
    assert compacted.num_tokens.tolist() == lengths
    for row, expected in enumerate(rows):
        for found, tensor in zip(compacted.kv(row), expected, strict=True):
            assert np.array_equal(found, tensor)
    found, _ = session.decoder.step([8] * len(going), compacted)
    _, again = branch(session.decoder, prefix, questions)
    _, again = session.decoder.step([5, 6, 7], again)
    expected_logits, _ = session.decoder.step([8, 8, 8], again)
    assert np.abs(found - expected_logits[going]).max() <= ATOL


def test_a_branch_that_ended_leaves_the_batch(session: Session, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode with a token of one answer as the end: the batch shrinks, the others go on as they would."""
    tokens = free_run(session, images)
    stop = next(
        (row, step)
        for step in range(1, STEPS - 1)
        for row in range(2)  # not the last row, which would leave without a move
        if tokens[step, row] not in tokens[:step, row] and tokens[step, row] not in np.delete(tokens, row, axis=1)
    )
    batches: list[int] = []
    forward = session.decoder.forward

    def counted(embeds: Any, cache: Cache, positions: Any = None) -> Any:
        batches.append(len(embeds))
        return forward(embeds, cache, positions)

    logits, cache = branch(session.decoder, read_prefix(session, images), suffixes(session))
    monkeypatch.setattr(session.decoder, "forward", counted)
    states = greedy(session, logits, cache, STEPS, stop_id=int(tokens[stop[1], stop[0]]))
    for row, state in enumerate(states):
        expected = tokens[: stop[1], row] if row == stop[0] else tokens[:, row]
        assert state.tokens == expected.tolist()
    assert batches == [3] * stop[1] + [2] * (STEPS - 1 - stop[1])


def test_a_cache_is_a_value(session: Session, images: Images) -> None:
    """Going on twice from one cache gives the same both times, and leaves what the first gave alone."""
    prefix = read_prefix(session, images)
    logits, start = branch(session.decoder, prefix, suffixes(session))
    first, longer = session.decoder.step([1, 2, 3], start)
    other, _ = session.decoder.step([4, 5, 6], start)
    found, _ = session.decoder.step([7, 8, 9], longer)
    again, longer = session.decoder.step([1, 2, 3], start)
    expected, _ = session.decoder.step([7, 8, 9], longer)
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.array_equal(found, expected), "the second run wrote over the first"
    repeated, _ = branch(session.decoder, prefix, suffixes(session))
    assert np.array_equal(repeated, logits), "the kept prefix was written over"


def test_several_columns_of_several_rows(session: Session) -> None:
    """forward and read without any past; every row its own sequence."""
    sequences = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    decoder = session.decoder
    one_by_one = np.concatenate([decoder.read([ids], decoder.empty_cache())[0] for ids in sequences])
    together, cache = decoder.forward(decoder.embed(np.asarray(sequences)), decoder.empty_cache(3))
    assert np.abs(together - one_by_one).max() <= ATOL
    ragged, longer = decoder.read([[1], [2, 3, 4], [5, 6]], cache)
    expected = [
        decoder.read([ids + more], decoder.empty_cache())[0]
        for ids, more in zip(sequences, ([1], [2, 3, 4], [5, 6]), strict=True)
    ]
    assert np.abs(ragged - np.concatenate(expected)).max() <= ATOL
    assert longer.num_tokens.tolist() == [5, 7, 6]


@pytest.mark.parametrize(
    ("lengths", "calls"),
    [((1, 3, 1), 2), ((1, 1, 1), 1), ((2, 1, 5), 3), ((1, 4, 1, 9), 3), ((1, 1, 1, 20), 2), ((3,), 1), ((1,), 1), ((2, 2), 2)],
)
def test_rows_of_one_token_are_read_together(session: Session, lengths: tuple[int, ...], calls: int) -> None:
    """As when a grammar forces tokens in some answers: one call for all rows, and one for what each longer row has left."""
    decoder, rng = session.decoder, np.random.default_rng(0)
    before = [rng.integers(5, 300, 3 + row).tolist() for row in range(len(lengths))]  # rows of different lengths
    more = [rng.integers(5, 300, length).tolist() for length in lengths]
    _, cache = decoder.read(before, decoder.empty_cache(len(lengths), room=40))
    counted = decoder.engine_calls
    found, longer = decoder.read(more, cache)
    assert decoder.engine_calls - counted == (calls if session.dialect == "gqa" else 1)
    assert longer.num_tokens.tolist() == [len(a) + len(b) for a, b in zip(before, more, strict=True)]
    assert longer.next_positions.tolist() == longer.num_tokens.tolist()
    after, _ = decoder.step([7] * len(lengths), longer)
    for row, (first, second) in enumerate(zip(before, more, strict=True)):
        expected, alone = decoder.read([first + second], decoder.empty_cache(1, room=40))
        assert np.abs(found[row] - expected[0]).max() <= ATOL
        assert np.abs(after[row] - decoder.step([7], alone)[0][0]).max() <= ATOL


@pytest.mark.parametrize("shared_session", ["gqa"], indirect=True)  # the other dialect reads in one call
@pytest.mark.parametrize("reason", ["deadline", "cancelled"])
@pytest.mark.parametrize(("lengths", "last"), [((4, 5, 6), 1), ((4, 5, 6), 2), ((1, 4, 1, 9), 1), ((1, 4, 1, 9), 2)])
def test_a_read_ends_between_two_calls(
    shared_session: Session, lengths: tuple[int, ...], last: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = shared_session.decoder
    sequences = [[5] * length for length in lengths]
    start = decoder.engine_calls
    monkeypatch.setattr(Deadline, "expired", lambda self: decoder.engine_calls - start >= last)
    options: dict[str, Any] = {"deadline": Deadline()} if reason == "deadline" else {"cancelled": Deadline().expired}
    with pytest.raises(DeadlineExpiredError):
        decoder.read(sequences, decoder.empty_cache(len(lengths), room=9), **options)
    assert decoder.engine_calls - start == last


def test_logits_that_were_kept_stay(session: Session, images: Images) -> None:
    """Steps write into the same memory, but not while somebody holds it."""
    logits, cache = branch(session.decoder, read_prefix(session, images), suffixes(session))
    held, copies = [logits], [logits.copy()]
    for _ in range(5):
        logits, cache = session.decoder.step([1, 2, 3], cache)
        held.append(logits)
        copies.append(logits.copy())
    assert all(np.array_equal(a, b) for a, b in zip(held, copies, strict=True))
    assert not np.array_equal(copies[0], copies[1])


def test_memory_that_no_model_can_fill_is_refused(session: Session) -> None:
    limit = session.manifest.model.max_positions
    for rows, capacity in ((0, 10), (3, 0), (3, limit + 1)):
        with pytest.raises(
            UsageError, match=rf"K/V memory for {rows} branches of {capacity} tokens; expected .* 1 to {limit} tokens"
        ):
            session.decoder.reserve(rows, capacity)


def test_both_dialects_agree_and_replay_each_others_run(exported: Exported, images: Images) -> None:
    sessions = {dialect: Session(exported.bundle, threads=1, dialect=dialect) for dialect in DIALECTS}
    assert [session.dialect for session in sessions.values()] == list(DIALECTS)
    questions = list(sessions["gqa"].questions().values())
    tokens = free_run(sessions["gqa"], images)
    assert np.array_equal(tokens, free_run(sessions["concat"], images))
    found = [session.forced_logits(images, questions, tokens) for session in sessions.values()]
    assert np.abs(found[0] - found[1]).max() <= ATOL
    caches = [branch(session.decoder, read_prefix(session, images), suffixes(session))[1] for session in sessions.values()]
    for row in range(3):
        for left, right in zip(caches[0].kv(row), caches[1].kv(row), strict=True):
            assert left.shape == right.shape
            assert np.abs(left - right).max() <= ATOL * max(1, np.abs(left).max())
    for recording in sessions.values():
        golden = record_golden(recording)
        for replaying in sessions.values():
            replay = replay_golden(replaying, golden, "here")
            assert replay.passed
            assert replay.tokens_compared > 30


def test_auto_takes_the_manifests_first(exported: Exported) -> None:
    for dialects in (DIALECTS, DIALECTS[::-1], ("std24", "concat")):
        with Session(with_dialects(exported.bundle, dialects), threads=1) as session:
            assert session.dialect == next(name for name in dialects if name in DIALECTS)


def test_a_dialect_that_cannot_run_is_refused(exported: Exported) -> None:
    bundle = exported.bundle
    with pytest.raises(BundleError, match=r"has the dialects std24; ort-cpu of this drivekd runs gqa, concat"):
        Session(with_dialects(bundle, ("std24",)))
    with pytest.raises(BundleError, match=r"has the dialects none"):
        Session(with_dialects(bundle, ()))
    with pytest.raises(BundleError, match=r"has the dialects gqa; ort-cuda of this drivekd runs concat"):
        Session(with_dialects(bundle, ("gqa",)), backend="ort-cuda")
    with pytest.raises(UsageError, match=r"dialect 'std24': this bundle has gqa, concat, ort-cpu runs gqa, concat"):
        Session(bundle, dialect="std24")
    with pytest.raises(UsageError, match=r"dialect 'gqa': this bundle has concat"):
        Session(with_dialects(bundle, ("concat",)), dialect="gqa")
    graphs = {name: spec for name, spec in bundle.manifest.graphs.items() if name != "decoder.gqa"}
    with pytest.raises(BundleError, match=r"names the dialect gqa, but has no graph decoder\.gqa"):
        Session(dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, graphs=graphs)))


def with_dialects(bundle: Bundle, dialects: tuple[str, ...]) -> Bundle:
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, dialects=dialects))


def test_rotary_axes_of_another_family_are_refused(exported: Exported) -> None:
    manifest = exported.bundle.manifest
    model = dataclasses.replace(manifest.model, rotary_axes=4 - manifest.model.rotary_axes)
    with pytest.raises(BundleError, match="rotary axes, its image settings belong to"):
        Session(dataclasses.replace(exported.bundle, manifest=dataclasses.replace(manifest, model=model)))


@pytest.mark.parametrize("allowed_calls", range(10))
def test_the_deadline_waits_for_one_engine_call_at_most(
    session: Session, images: Images, allowed_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time moves only with engine calls; whichever one passes the deadline is the last."""
    full = session.answer(images, max_new_tokens=4)
    session.prefix.forget()
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

    monkeypatch.setattr(session.vision, "infer", count("vision", session.vision.infer))
    monkeypatch.setattr(session.decoder._runner, "infer", count("decoder", session.decoder._runner.infer))  # type: ignore[attr-defined]
    monkeypatch.setattr(BoundGraph, "run", count("decoder", BoundGraph.run))
    return calls


def test_a_closed_session_runs_nothing(exported: Exported, images: Images) -> None:
    for dialect in DIALECTS:
        session = Session(exported.bundle, threads=1, dialect=dialect)
        session.close()
        with pytest.raises(RunnerError, match="closed"):
            session.decoder.read([[1, 2]], session.decoder.empty_cache())


# What both dialects of one quantized graph may differ by, over the largest logit: K/V and sums of 11 bits; int8 rounding of
# activations within MatMulNBits, which turns a difference of 1e-6 into a whole step where a value lies between two.
QUANTIZED = {"fp16": 2e-2, "int4": 5e-2}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantized_dialects_agree(exported: Exported, images: Images, precision: str, tmp_path: Path) -> None:
    bundle = exported.bundle
    plan = GraphPlan(precision, block=32)
    graphs = dict(bundle.manifest.graphs)
    for dialect in DIALECTS:
        graphs[f"decoder.{dialect}"] = convert(graphs[f"decoder.{dialect}"], bundle.path, tmp_path, plan)
    for name in ("vision.onnx", "embedding.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(bundle.files[name])
    quantized = bundle_of(exported.source, graphs, tmp_path)
    sessions = [Session(quantized, threads=1, dialect=dialect) for dialect in DIALECTS]
    kinds = [kv.dtype for session in sessions for kv in read_prefix(session, images).kv(0)]
    assert set(kinds) == {np.dtype(np.float16 if precision == "fp16" else np.float32)}
    tokens = free_run(sessions[0], images)
    questions = list(sessions[0].questions().values())
    left, right = (session.forced_logits(images, questions, tokens) for session in sessions)
    assert left.dtype == right.dtype == np.float32
    assert np.abs(left - right).max() <= QUANTIZED[precision] * np.abs(left).max()
    exact = Session(bundle, threads=1).forced_logits(images, questions, tokens)
    assert np.abs(left - exact).max() > 0, "nothing was quantized"
