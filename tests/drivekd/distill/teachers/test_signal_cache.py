"""The teacher cache: what it gives is what the teacher says, what is not in it is asked, and what changed is another store.

Real teachers of both families; perception and planning are cached, reasoning is always live.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from tiny_run import Pair, TinyRun, frame_samples, load_pair, start_trainer
from torch import Tensor

import drivekd.distill.teachers.disk as block_disk
from drivekd.data.batch import Batch
from drivekd.data.packs import Pack, frame_packs, single_packs
from drivekd.distill.signals import places_of
from drivekd.distill.teachers.caches import cache_size
from drivekd.distill.teachers.signal_cache import SignalCache
from drivekd.distill.teachers.teachers import Teacher, Teachers
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import TrainingError
from drivekd.models import load_model
from drivekd.sample import CAPABILITIES, Capability, Sample

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

CACHED: tuple[Capability, ...] = ("perception", "planning")
# What packed and unpacked passes differ by, in fp32: other lengths, another mask, other orders of sums. Maps reach 1.
PACKING_ATOL = 1e-6
FP16_RTOL = 2**-11  # 11 bits; below 2^-14 a half has fewer, and is off by 2^-25 at most


class Memory(dict[str, Tensor]):
    """A store in memory that counts."""

    hits = 0

    def get(self, key: str) -> Tensor | None:  # type: ignore[override]
        found = super().get(key)
        self.hits += found is not None
        return found

    def put(self, key: str, block: Tensor) -> None:
        self.setdefault(key, block.clone())


@contextmanager
def teacher_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The layers that each pass of a teacher is asked for."""
    passes: list[tuple[int, ...]] = []
    honest = Teacher.maps

    def counted(self: Teacher, batch: Batch, signals: Sequence[Any]) -> Any:
        passes.append(tuple(layer for signal in signals for layer in signal.teacher_layers))
        return honest(self, batch, signals)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "maps", counted)
        yield passes


@pytest.fixture(scope="module")
def pair(family_run: TinyRun) -> Pair:
    return load_pair(family_run)


@pytest.fixture(scope="module")
def samples(family_run: TinyRun) -> list[Sample]:
    return frame_samples(family_run, [5, 3, 1])


@pytest.fixture
def stores(pair: Pair) -> Iterator[dict[Capability, Memory]]:
    """Empty stores under the teachers of `pair`."""
    assert pair.teachers is not None
    found = {name: Memory() for name in CACHED}
    pair.teachers.caches = {name: SignalCache(store) for name, store in found.items()}
    yield found
    pair.teachers.caches = {}


def packed(pair: Pair, samples: Sequence[Sample]) -> list[Pack]:
    return frame_packs(samples, pair.collate.num_tokens, 4096, seed=0)


def targets(pair: Pair, packs: Sequence[Pack]) -> tuple[Batch, dict[Capability, list[Tensor]]]:
    """Every sample asks every teacher."""
    assert pair.teachers is not None
    batch = pair.collate(packs)
    every = tuple(range(len(batch.samples)))
    return batch, pair.teachers.targets(batch, dict.fromkeys(CAPABILITIES, every))


def real_parts(batch: Batch, pair: Pair, found: dict[Capability, list[Tensor]]) -> dict[Capability, Tensor]:
    assert pair.teachers is not None
    parts = {}
    for name in CACHED:
        places = places_of(pair.teachers.signals[name].form, batch)
        mask = places.row_mask[:, :, None] & places.column_mask[:, None]
        parts[name] = torch.stack([target[mask] for target in found[name]])
    return parts


# --- what it gives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [packed, lambda _, samples: single_packs(samples)], ids=["packed", "single"])
def test_cached_targets_are_the_live_ones_bit_for_bit(
    pair: Pair, samples: list[Sample], stores: dict[Capability, Memory], monkeypatch: pytest.MonkeyPatch, packing: Any
) -> None:
    packs = packing(pair, samples)
    batch, live = targets(pair, packs)
    with teacher_passes(monkeypatch) as passes:
        _, cached = targets(pair, packs)
    assert passes == [(0, 1, 2)], "reasoning is live, and nothing else"
    for name, part in real_parts(batch, pair, live).items():
        assert torch.equal(real_parts(batch, pair, cached)[name], part)
        assert float(part.std()) > 1e-3
    for name in CACHED:
        assert [target.shape for target in cached[name]] == [target.shape for target in live[name]]


@pytest.mark.parametrize("written", ["packed", "single"])
def test_packed_and_unpacked_runs_share_a_cache(
    pair: Pair, samples: list[Sample], stores: dict[Capability, Memory], monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    both = {"packed": packed(pair, samples), "single": single_packs(samples)}
    targets(pair, both[written])
    sizes = {name: len(store) for name, store in stores.items()}
    other = both["single" if written == "packed" else "packed"]
    with teacher_passes(monkeypatch) as passes:
        batch, cached = targets(pair, other)
    assert passes == [(0, 1, 2)]
    assert {name: len(store) for name, store in stores.items()} == sizes == dict.fromkeys(CACHED, 3 + 9)  # frames, questions
    assert pair.teachers is not None
    pair.teachers.caches = {}
    _, live = targets(pair, other)
    for name, part in real_parts(batch, pair, live).items():
        torch.testing.assert_close(real_parts(batch, pair, cached)[name], part, rtol=0, atol=PACKING_ATOL)


def test_a_cached_step_is_the_live_step(pair: Pair, samples: list[Sample], stores: dict[Capability, Memory]) -> None:
    """Losses and gradients, to the bit."""
    packs = packed(pair, samples)
    losses, gradients = pair.gradients([packs])
    hits = stores["planning"].hits
    cached_losses, cached = pair.gradients([packs])
    assert stores["planning"].hits > hits
    assert cached_losses == losses
    assert all(torch.equal(cached[name], gradients[name]) for name in gradients)


def test_the_first_use_gives_what_every_later_use_gives(family_run: TinyRun, tmp_path: Path) -> None:
    """Else a resumed run, which finds more in the cache than the run before it did, is not equal to it bit for bit."""
    samples = frame_samples(family_run, [4])
    trainer = run_with_cache(family_run, tmp_path / "cache", "cache.precision=fp16", labelled=samples)
    assert trainer.teachers is not None
    batch = trainer.collate([tuple(samples)])
    every = tuple(range(len(samples)))
    first, later = (trainer.teachers.targets(batch, dict.fromkeys(CACHED, every)) for _ in range(2))
    assert all(torch.equal(one, other) for name in CACHED for one, other in zip(first[name], later[name], strict=True))


def test_one_missing_block_is_asked_for(
    pair: Pair, samples: list[Sample], stores: dict[Capability, Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = packed(pair, samples)
    batch, live = targets(pair, packs)
    gone = sorted(stores["planning"])[3]
    lost = stores["planning"].pop(gone)
    with teacher_passes(monkeypatch) as passes:
        _, again = targets(pair, packs)
    assert len(passes) == 1 and 2 in passes[0] and passes[0].count(2) == 2  # planning and reasoning share the pass
    assert torch.equal(stores["planning"][gone], lost)
    assert torch.equal(real_parts(batch, pair, again)["planning"], real_parts(batch, pair, live)["planning"])


def test_a_question_is_stored_once_however_often_it_comes(
    pair: Pair, samples: list[Sample], stores: dict[Capability, Memory]
) -> None:
    """A frame's prefix is one block; another answer, another question or another frame is another one."""
    targets(pair, single_packs(samples[:1]))
    assert len(stores["planning"]) == 2
    targets(pair, single_packs(samples[:1]))
    targets(pair, [tuple(samples[:2])])
    assert len(stores["planning"]) == 3
    shapes = sorted(block.shape for block in stores["planning"].values())
    tokens = pair.collate.processor.chat.tokens_per_image
    prefix, _ = pair.collate.num_tokens(samples[0])
    own = [pair.collate.num_tokens(sample)[1] for sample in samples[:2]]
    assert shapes == sorted([(1, prefix - tokens, tokens), *((1, rows, tokens) for rows in own)])


def test_a_changed_picture_is_another_frame(
    family_run: TinyRun, pair: Pair, stores: dict[Capability, Memory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name does not matter, the contents do: moved data are found again, edited ones are not."""
    first = frame_samples(family_run, [2])
    moved = tmp_path / "moved.png"
    shutil.copy(first[0].images[0], moved)
    elsewhere: list[Pack] = [tuple(Sample("here", s.capability, s.question, s.answer, (moved,)) for s in first)]
    targets(pair, [tuple(first)])
    with teacher_passes(monkeypatch) as passes:
        targets(pair, elsewhere)
        assert passes.pop() == (0, 1, 2)
        Image.new("RGB", (9, 9), "red").save(moved)
        targets(pair, elsewhere)
    assert sorted(passes.pop()) == [0, 0, 1, 2, 2]
    assert len(stores["planning"]) == 6


# --- on disk --------------------------------------------------------------------------------------------------------

EVERYTHING_FROZEN = "student.train=[language_model]"


def run_with_cache(run: TinyRun, cache: Path, *overrides: str, labelled: list[Sample] | None = None) -> Trainer:
    unlabelled = () if labelled is None else ("data.unlabelled=[]", "training.unlabelled_batch_size=0")
    settings = (f"cache.directory={cache}", EVERYTHING_FROZEN, "training.batch_size=18", *unlabelled, *overrides)
    return start_trainer(run, *settings, labelled=labelled)


class Step(NamedTuple):
    loss: dict[str, float]
    passes: list[tuple[int, ...]]
    trainer: Trainer


def one_step(monkeypatch: pytest.MonkeyPatch, run: TinyRun, cache: Path, *overrides: str) -> Step:
    trainer = run_with_cache(run, cache, *overrides)
    with teacher_passes(monkeypatch) as passes:
        loss = trainer.step()["loss"]
    trainer.caches.close()
    return Step(loss, passes, trainer)


def test_a_second_run_asks_no_cached_teacher(family_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = f"teachers={{perception: {family_run.teacher}, planning: {family_run.teacher}}}"
    first = one_step(monkeypatch, family_run, tmp_path / "cache", only)
    second = one_step(monkeypatch, family_run, tmp_path / "cache", only)
    assert len(first.passes) > 0
    assert second.passes == []
    assert second.loss == first.loss
    weights = [dict(step.trainer.student.named_parameters()) for step in (first, second)]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_filling_first_leaves_nothing_to_ask(family_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = run_with_cache(family_run, tmp_path / "cache", "signals.mixing=released")
    trainer.fill_cache()
    with teacher_passes(monkeypatch) as passes:
        trainer.fill_cache()
        assert passes == []
        trainer.step()
    assert set(passes) == {(0, 1, 2)}


def own_teacher(run: TinyRun, folder: Path) -> str:
    """A copy that a test may change, as an override."""
    shutil.copytree(run.teacher, folder)
    return f"teachers={{perception: {folder}, planning: {folder}}}"


def edit_weight(folder: Path) -> None:
    model = load_model(folder)
    model.model.language_model.layers[0].self_attn.q_proj.weight.data[0, 0] += 0.5
    model.save_pretrained(folder)


def edit_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "teacher": edit_weight,
    "tokenizer": edit_tokenizer,
    "signals.planning.teacher_layers=[1]": lambda _: None,
    "cache.precision=fp16": lambda _: None,
}


def planning_stores(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("signal-planning-*")}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_maps_is_another_store(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Also where the teacher's folder keeps its name."""
    only = own_teacher(tiny_run, tmp_path / "teacher")
    one_step(monkeypatch, tiny_run, tmp_path / "cache", only)
    before = planning_stores(tmp_path / "cache")
    CHANGES[change](tmp_path / "teacher")
    step = one_step(monkeypatch, tiny_run, tmp_path / "cache", only, *([change] if "=" in change else []))
    assert len(step.passes) > 0
    assert len(planning_stores(tmp_path / "cache") - before) == 1


def test_what_does_not_change_the_maps_is_the_same_store(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, loss, weighting, packing, and where the teacher lies."""
    one_step(monkeypatch, tiny_run, tmp_path / "cache", own_teacher(tiny_run, tmp_path / "teacher"))
    moved = own_teacher(tiny_run, tmp_path / "moved")
    others = ("signals.rows=question", "signals.planning.loss=cosine", "signals.weighting=static", "training.packing=frame")
    assert one_step(monkeypatch, tiny_run, tmp_path / "cache", moved, *others).passes == []


def test_half_precision_is_off_by_its_own_rounding(tiny_run: TinyRun, tmp_path: Path) -> None:
    samples = frame_samples(tiny_run, [5, 3, 1])
    pair = load_pair(tiny_run)
    batch, live = targets(pair, packed(pair, samples))
    trainer = run_with_cache(tiny_run, tmp_path / "cache", "cache.precision=fp16", "signals.mixing=released", labelled=samples)
    trainer.fill_cache()
    assert isinstance(trainer.teachers, Teachers)
    every = tuple(range(len(batch.samples)))
    cached = trainer.teachers.targets(batch, dict.fromkeys(CACHED, every))
    for name, part in real_parts(batch, pair, live).items():
        found = real_parts(batch, pair, cached)[name]
        assert not torch.equal(found, part)
        torch.testing.assert_close(found, part, rtol=FP16_RTOL, atol=2**-25 + PACKING_ATOL)


# --- its size -------------------------------------------------------------------------------------------------------


def bytes_on_disk(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*.safetensors"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("packing", ["none", "frame"])
def test_the_predicted_size_is_what_is_written(family_run: TinyRun, tmp_path: Path, precision: str, packing: str) -> None:
    """Beside the values a block costs its name, its checksum and its line in a shard's header: 250 bytes at most."""
    samples = frame_samples(family_run, [5, 3, 1, 2])
    settings = (f"cache.precision={precision}", f"training.packing={packing}", "signals.mixing=released")
    trainer = run_with_cache(family_run, tmp_path / "cache", *settings, labelled=samples)
    predicted = cache_size(trainer.config, trainer.checkpoint, trainer.teachers, trainer.collate, samples)
    trainer.fill_cache()
    trainer.step()  # the student's features
    trainer.caches.close()
    blocks = 2 * (4 + 11) + 2 * 5  # two signals: frames and questions; two towers: pictures
    assert predicted.total <= bytes_on_disk(tmp_path / "cache") <= predicted.total + 250 * blocks + 4096 * 4
    assert len(predicted.by_store) == 4


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = block_disk.RESERVE_BYTES + 1000
    monkeypatch.setattr(block_disk, "_free_bytes", lambda _: free)
    with pytest.raises(TrainingError, match=r"the cache of teachers and vision towers needs .* must stay free"):
        run_with_cache(tiny_run, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(block_disk, "_free_bytes", lambda _: free + 10_000_000)
    run_with_cache(tiny_run, tmp_path / "cache")


def test_a_full_cache_fits_on_a_full_disk(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already needs no room."""
    only = (f"teachers={{planning: {tiny_run.teacher}}}", "cache.vision=false", "signals.mixing=released")
    trainer = run_with_cache(tiny_run, tmp_path / "cache", *only)
    trainer.fill_cache()
    trainer.caches.close()
    monkeypatch.setattr(block_disk, "_free_bytes", lambda _: block_disk.RESERVE_BYTES)
    run_with_cache(tiny_run, tmp_path / "cache", *only).step()
