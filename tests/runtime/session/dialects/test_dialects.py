"""Both families in both dialects: the same answers as torch gives, one prompt at a time; and which dialect a session takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from dialect_cases import ATOL, STEPS, Images, free_run, suffixes
from dialect_exports import Exported, bundle_of
from numpy.typing import NDArray

from drivekd.errors import BundleError, RunnerError, UsageError
from drivekd.export.quantize.convert import convert
from drivekd.export.settings import GraphPlan
from drivekd.models import encode_images, language_model, rotary_positions
from drivekd.runtime.bundle.manifest import DIALECTS
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.parity.golden import record_golden, replay_golden
from drivekd.runtime.session.sampling import top2_margin
from drivekd.runtime.session.session import Session
from drivekd.runtime.session.triad import branch

pytestmark = pytest.mark.numerics


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
    tokens = free_run(session.model, images)  # [N, B]
    questions = list(session.model.questions().values())
    found = session.model.forced_logits(images, questions, tokens)  # [N, B, V]
    for row, question in enumerate(questions):
        expected = torch_logits(exported, images, question, tokens[:, row].tolist())
        assert np.abs(found[:, row] - expected).max() <= ATOL
        clear = top2_margin(expected) > 1e-3
        assert clear.any()
        assert (expected.argmax(-1) == tokens[:, row])[clear].all()


def test_the_model_is_not_vacuous(session: Session, images: Images) -> None:
    tokens = free_run(session.model, images)
    assert len({tuple(row) for row in tokens.T}) == 3
    other = free_run(session.model, {name: 255 - image for name, image in images.items()})
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
    cache = session.model.read(images)
    assert cache.num_tokens.tolist() == [positions.shape[1]]
    assert cache.next_positions.tolist() == [positions.max() + 1]
    assert (cache.next_positions < cache.num_tokens).all() == (len(positions) == 3)
    questions = suffixes(session.model)
    _, longer = branch(session.model.decoder, cache, questions)
    expected = positions.max() + 1 + np.asarray([len(ids) for ids in questions])
    assert longer.next_positions.tolist() == expected.tolist()
    _, longer = session.model.decoder.step([1, 2, 3], longer)
    assert longer.next_positions.tolist() == (expected + 1).tolist()


def test_both_dialects_agree_and_replay_each_others_run(exported: Exported, images: Images) -> None:
    sessions = {dialect: Session(exported.bundle, threads=1, dialect=dialect) for dialect in DIALECTS}
    assert [session.dialect for session in sessions.values()] == list(DIALECTS)
    questions = list(sessions["gqa"].model.questions().values())
    tokens = free_run(sessions["gqa"].model, images)
    assert np.array_equal(tokens, free_run(sessions["concat"].model, images))
    found = [session.model.forced_logits(images, questions, tokens) for session in sessions.values()]
    assert np.abs(found[0] - found[1]).max() <= ATOL
    caches = [
        branch(session.model.decoder, session.model.read(images), suffixes(session.model))[1] for session in sessions.values()
    ]
    for row in range(3):
        for left, right in zip(caches[0].kv(row), caches[1].kv(row), strict=True):
            assert left.shape == right.shape
            assert np.abs(left - right).max() <= ATOL * max(1, np.abs(left).max())
    for recording in sessions.values():
        golden = record_golden(recording.model)
        for replaying in sessions.values():
            replay = replay_golden(replaying.model, golden, "here")
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


def test_a_closed_session_runs_nothing(exported: Exported, images: Images) -> None:
    for dialect in DIALECTS:
        session = Session(exported.bundle, threads=1, dialect=dialect)
        session.close()
        with pytest.raises(RunnerError, match="closed"):
            session.model.decoder.read([[1, 2]], session.model.decoder.empty_cache())


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
    kinds = [kv.dtype for session in sessions for kv in session.model.read(images).kv(0)]
    assert set(kinds) == {np.dtype(np.float16 if precision == "fp16" else np.float32)}
    tokens = free_run(sessions[0].model, images)
    questions = list(sessions[0].model.questions().values())
    left, right = (session.model.forced_logits(images, questions, tokens) for session in sessions)
    assert left.dtype == right.dtype == np.float32
    assert np.abs(left - right).max() <= QUANTIZED[precision] * np.abs(left).max()
    exact = Session(bundle, threads=1).model.forced_logits(images, questions, tokens)
    assert np.abs(left - exact).max() > 0, "nothing was quantized"
