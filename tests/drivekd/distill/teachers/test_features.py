"""Image features: each picture once, kept where the tower is frozen, shared where the weights are equal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import NO_TEACHERS, Pair, TinyRun, frame_samples, load_pair, start_trainer
from torch import Tensor

import drivekd.distill.teachers.features as module
from drivekd.data.batch import Batch
from drivekd.data.packs import frame_packs, single_packs
from drivekd.distill.teachers.features import ImageFeatures, Towers, vision_digest
from drivekd.files import file_digest
from drivekd.models import encode_images, load_model, modules_of

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

ATOL = 1e-5  # fp32, features up to 3; other batch shapes round otherwise
FROZEN = "student.train=[language_model]"
CPU = torch.device("cpu")


@contextmanager
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, int]]]:
    """(model, number of pictures) for each call of a vision tower."""
    calls: list[tuple[Any, int]] = []

    def counted(model: Any, pixel_values: Tensor) -> Tensor:
        calls.append((model, len(pixel_values)))
        return encode_images(model, pixel_values)

    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_images", counted)
        yield calls


def tower(pair: Pair, *, frozen: bool, **options: Any) -> ImageFeatures:
    return ImageFeatures(pair.student, pair.collate, CPU, torch.float32, frozen=frozen, **options)


@pytest.fixture(scope="module")
def pair(family_run: TinyRun) -> Pair:
    return load_pair(family_run)


@pytest.fixture(scope="module")
def batch(family_run: TinyRun, pair: Pair) -> Any:
    """Pictures 0; 1 and 2; 2: four places, three pictures."""
    return pair.collate(frame_packs(frame_samples(family_run, [2, 1, 2]), pair.collate.num_tokens, 4096, seed=0))


@pytest.mark.parametrize("frozen", [True, False])
def test_features_are_the_models_embeddings_in_order(pair: Pair, batch: Any, frozen: bool) -> None:
    found = tower(pair, frozen=frozen)(batch)
    pixels = pair.collate.pixel_values([path for images in batch.images for path in images], "here")
    with torch.no_grad():
        expected = encode_images(pair.student, pixels).flatten(0, 1)
    assert found.shape == (int(batch.vision_mask.sum()), found.shape[1])
    assert found.requires_grad != frozen
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=ATOL)


def test_a_picture_is_encoded_once_a_micro_batch(pair: Pair, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with encoded(monkeypatch) as calls:
        features = tower(pair, frozen=False)
        for _ in range(2):
            features(batch)
    assert [count for _, count in calls] == [3, 3]


def test_a_frozen_tower_encodes_a_picture_once_a_run(pair: Pair, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with encoded(monkeypatch) as calls:
        features = tower(pair, frozen=True)
        first, second = features(batch), features(batch)
    assert [count for _, count in calls] == [1, 1, 1]
    assert torch.equal(first, second)


def test_frozen_features_do_not_depend_on_the_batch(family_run: TinyRun, pair: Pair, batch: Any) -> None:
    """Bit for bit: a resumed run has kept nothing, and asks for other pictures together than the run before it did."""
    whole = tower(pair, frozen=True)(batch)
    one_by_one = tower(pair, frozen=True)
    for sample in frame_samples(family_run, [0, 1, 1]):
        one_by_one(pair.collate([(sample,)]))
    assert torch.equal(one_by_one(batch), whole)


def test_what_is_kept_is_bounded(family_run: TinyRun, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first, but no picture of the batch at hand: the next teacher asks for the same ones."""
    a, b, c = (pair.collate([(sample,)]) for sample in frame_samples(family_run, [1, 0, 1, 0, 1]))  # pictures 0, 2 and 4
    both = pair.collate([(a.samples[0],), (b.samples[0],)])
    one = tower(pair, frozen=True)(a).nbytes
    features = tower(pair, frozen=True, cache_bytes=2 * one)
    expected: list[tuple[Batch, int]] = [(a, 1), (b, 1), (a, 0), (c, 1), (a, 0), (b, 1), (c, 1)]
    for batch, encodes in expected:
        with encoded(monkeypatch) as calls:
            features(batch)
        assert len(calls) == encodes
        assert features._bytes <= 2 * one
    nothing = tower(pair, frozen=True, cache_bytes=0)
    nothing(both)
    with encoded(monkeypatch) as calls:
        nothing(both)
        nothing(c)
        nothing(both)
    assert len(calls) == 0 + 1 + 2


class Memory(dict[str, Tensor]):
    """A store that forgets at the end."""

    def put(self, key: str, block: Tensor) -> None:
        self[key] = block.clone()


def test_a_store_outlives_the_run(pair: Pair, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tower(pair, frozen=True), tower(pair, frozen=True)
    first.store = second.store = Memory()
    expected = first(batch)
    assert set(first.store) == {file_digest(path) for images in batch.images for path in images}
    with encoded(monkeypatch) as calls:
        assert torch.equal(second(batch), expected)
    assert calls == []


# --- in a run -------------------------------------------------------------------------------------------------------


def test_a_trainable_tower_gets_the_gradient_of_every_question(family_run: TinyRun) -> None:
    """Nine questions share one vision pass; its gradient is the sum of theirs."""
    pair = load_pair(family_run, *NO_TEACHERS, "student.train=[vision_encoder, projector]")
    samples = frame_samples(family_run, [4], labelled=1.0)
    _, packed = pair.gradients([[tuple(samples)]])
    _, single = pair.gradients([[pack] for pack in single_packs(samples)])
    assert float(packed["ce"].norm()) > 0
    assert float((packed["ce"] - single["ce"]).norm()) <= 1e-5 * float(single["ce"].norm())  # fp32, four sums instead of one


def test_a_run_encodes_a_frozen_picture_once_for_each_set_of_weights(
    family_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student and teacher differ in theirs; three steps and four capabilities' worth of passes do not matter."""
    trainer = start_trainer(family_run, FROZEN, "signals.mixing=released")
    with encoded(monkeypatch) as calls:
        for _ in range(3):
            trainer.step()
    by_model: dict[int, int] = {}
    for model, count in calls:
        by_model[id(model)] = by_model.get(id(model), 0) + count
    assert len(by_model) == 2
    assert max(by_model.values()) <= 6, "there are six pictures"


def towers_of(run: TinyRun, *overrides: str) -> list[ImageFeatures]:
    pair = load_pair(run, *overrides)
    assert pair.teachers is not None
    return [pair.features, *(teacher.features for teacher in pair.teachers.by_capability.values())]


def test_models_with_equal_vision_weights_share_their_features(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Capability teachers are fine-tuned from one model with a frozen tower."""
    other = tmp_path / "other"
    shutil.copytree(tiny_run.teacher, other)
    model = load_model(other)
    model.model.language_model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
    model.save_pretrained(other)
    paths = f"teachers={{perception: {tiny_run.teacher}, planning: {other}}}"
    student, perception, planning = towers_of(tiny_run, FROZEN, paths)
    assert perception is planning
    assert student is not planning
    assert student.frozen and planning.frozen
    model.model.vision_tower.encoder.layer[0].mlp.fc1.weight.data.mul_(1.5)
    model.save_pretrained(other)
    assert len(set(towers_of(tiny_run, FROZEN, paths))) == 3
    same = f"teachers={{planning: {tiny_run.student}}}"
    assert len(set(towers_of(tiny_run, FROZEN, same))) == 1
    trained = towers_of(tiny_run, same)  # one that moves is nobody else's
    assert len(set(trained)) == 2
    assert [tower.frozen for tower in trained] == [False, True]


def test_features_are_shared_on_one_device_and_in_one_dtype(pair: Pair) -> None:
    """teachers.device and teachers.precision may be others than the student's."""
    towers = Towers(pair.collate)
    first = towers.of(pair.student, CPU, torch.float32)
    assert towers.of(pair.student, CPU, torch.float32) is first
    assert towers.of(pair.student, CPU, torch.bfloat16) is not first
    assert towers.of(pair.student, torch.device("meta"), torch.float32) is not first


@pytest.mark.parametrize("part", ["vision_encoder", "projector", "language_model"])
def test_a_vision_digest_is_of_the_vision_weights(family_run: TinyRun, part: Any) -> None:
    model = load_model(family_run.student)
    before = vision_digest(model)
    assert vision_digest(load_model(family_run.student)) == before
    next(modules_of(model, part)[0].parameters()).data.view(-1)[0] += 1e-3
    assert (vision_digest(model) == before) == (part == "language_model")
