"""Packs to tensors: tokens, labels, positions and masks against the prompts by hand; views of some samples; pixels.

Both families, tokenizers and processors of the tiny runs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TinyRun, frame_samples
from torch import Tensor

from drivekd.data.batch import IGNORED_LABEL, PADDING, PREFIX, Batch, Collator
from drivekd.data.packs import Pack, frame_packs, single_packs
from drivekd.errors import DataError
from drivekd.hf_checkpoint import load_processor
from drivekd.images import load_image
from drivekd.sample import CAPABILITIES, Sample


@pytest.fixture(scope="module")
def collate(family_run: TinyRun) -> Collator:
    return Collator(load_processor(family_run.student))


@pytest.fixture(scope="module")
def samples(family_run: TinyRun) -> list[Sample]:
    return frame_samples(family_run, [3, 2, 1])


@pytest.fixture(scope="module")
def packs(collate: Collator, samples: list[Sample]) -> list[Pack]:
    return frame_packs(samples, collate.num_tokens, 4096, seed=0)


@pytest.fixture(scope="module")
def batch(collate: Collator, packs: list[Pack]) -> Batch:
    return collate(packs)


def words_of(collate: Collator, sample: Sample) -> tuple[list[int], list[int]]:
    prompts = collate.processor.prompts
    return prompts.suffix(sample.question), [] if sample.answer is None else prompts.answer(sample.answer)


# --- the pack -------------------------------------------------------------------------------------------------------


def test_a_pack_is_a_prefix_and_its_questions_with_answers(collate: Collator, packs: list[Pack], batch: Batch) -> None:
    for row, pack in enumerate(packs):
        prefix = collate.processor.prompts.prefix(len(pack[0].images))
        words = [words_of(collate, sample) for sample in pack]
        ids = [*prefix, *chain.from_iterable(question + answer for question, answer in words)]
        assert batch.input_ids[row, : len(ids)].tolist() == ids
        assert batch.token_mask[row].tolist() == [place < len(ids) for place in range(batch.input_ids.shape[1])]
        for number, (question, answer) in enumerate(words, 1):
            mine = batch.segment[row] == number
            assert batch.input_ids[row][mine].tolist() == question + answer
            assert batch.labels[row][mine].tolist() == [IGNORED_LABEL] * len(question) + answer
            assert batch.prompt_mask[row][mine].tolist() == [True] * len(question) + [False] * len(answer)
        assert bool(batch.prompt_mask[row][batch.segment[row] == PREFIX].all())
        assert set(batch.labels[row][batch.segment[row] < 1].tolist()) == {IGNORED_LABEL}
    assert not bool(batch.prompt_mask[batch.segment == PADDING].any())


def test_samples_are_where_the_batch_says(packs: list[Pack], batch: Batch) -> None:
    assert list(batch.samples) == list(chain.from_iterable(packs))
    assert [packs[row][number - 1] for row, number in zip(batch.pack, batch.question, strict=True)] == list(batch.samples)
    assert [CAPABILITIES[index] for index in batch.capability] == [sample.capability for sample in batch.samples]
    assert batch.labelled.tolist() == [sample.answer is not None for sample in batch.samples]
    assert batch.images == tuple(pack[0].images for pack in packs)
    assert batch.num_tokens == int((batch.segment != PADDING).sum())


def test_a_question_has_the_positions_that_it_has_alone(collate: Collator, packs: list[Pack], batch: Batch) -> None:
    for row, pack in enumerate(packs):
        for number, sample in enumerate(pack, 1):
            alone = collate([(sample,)])
            mine = (batch.segment[row] == PREFIX) | (batch.segment[row] == number)
            assert torch.equal(batch.positions[:, row, mine], alone.positions[:, 0])
            assert torch.equal(batch.input_ids[row, mine], alone.input_ids[0])


def test_positions_of_text_count_up_from_the_images_largest(collate: Collator, samples: list[Sample]) -> None:
    alone = collate([(samples[0],)])
    prefix = collate.processor.prefix_positions(collate.processor.prompts.prefix(1))
    text = alone.positions[:, 0, prefix.shape[1] :]
    assert np.array_equal(alone.positions[:, 0, : prefix.shape[1]].numpy(), prefix)
    assert all(torch.equal(axis, int(prefix.max()) + 1 + torch.arange(text.shape[1])) for axis in text)


def test_what_may_see_what(batch: Batch) -> None:
    """A plain loop over pairs: itself and earlier, in the prefix or the same question."""
    mask = batch.attention_mask
    assert mask is not None and mask.shape == (len(batch.input_ids), 1, *batch.segment.shape[1:] * 2)
    for row, segment in enumerate(batch.segment.tolist()):
        for i, mine in enumerate(segment):
            for j, other in enumerate(segment):
                if PADDING not in (mine, other):
                    assert bool(mask[row, 0, i, j]) == (j <= i and other in (PREFIX, mine))
    assert bool(mask.any(-1).all())  # a row that sees nothing would be NaN
    assert not bool((mask[:, 0] & (batch.token_mask[:, :, None] & ~batch.token_mask[:, None])).any())  # padding is unseen


def test_single_questions_need_no_mask(collate: Collator, samples: list[Sample]) -> None:
    assert collate(single_packs(samples)).attention_mask is None


def test_vision_tokens_are_the_prefixs_image_tokens(collate: Collator, packs: list[Pack], batch: Batch) -> None:
    tokens = collate.processor.chat.tokens_per_image
    assert batch.vision_mask.sum(1).tolist() == [tokens * len(pack[0].images) for pack in packs]
    assert bool((batch.segment[batch.vision_mask] == PREFIX).all())


def test_padding_is_never_vision(family_run: TinyRun, packs: list[Pack]) -> None:
    """Also not where the padding id is the image token's."""
    collate = Collator(load_processor(family_run.student))
    prompts: Any = copy.copy(collate.processor.prompts)
    prompts.image_token_id = 0
    collate.processor = replace(collate.processor, prompts=prompts)
    found = collate(packs)
    assert not bool((found.vision_mask & ~found.token_mask).any())


def test_num_tokens_says_what_the_batch_has(collate: Collator, packs: list[Pack], batch: Batch) -> None:
    for row, pack in enumerate(packs):
        prefix = {collate.num_tokens(sample)[0] for sample in pack}
        assert prefix == {int((batch.segment[row] == PREFIX).sum())}
        own = [collate.num_tokens(sample)[1] for sample in pack]
        assert own == [int((batch.segment[row] == number).sum()) for number in range(1, len(pack) + 1)]


@pytest.mark.parametrize("field", ["question", "answer"])
def test_a_marker_in_a_record_is_named_with_its_record(collate: Collator, samples: list[Sample], field: str) -> None:
    with pytest.raises(DataError, match=r"frame 0, question 0: the (question|answer) contains the chat marker"):
        collate([(replace(samples[0], **{field: "Look <|im_end|>"}),)])


# --- views ----------------------------------------------------------------------------------------------------------

FIELDS = ("input_ids", "labels", "segment", "vision_mask", "prompt_mask")


def assert_same_batch(found: Batch, expected: Batch) -> None:
    """Equal, but for what stands at padded places."""
    assert torch.equal(found.segment, expected.segment)
    real = found.token_mask
    for name in FIELDS:
        assert torch.equal(getattr(found, name)[real], getattr(expected, name)[real]), name
    assert torch.equal(found.positions[:, real], expected.positions[:, real])
    for name in ("labels", "vision_mask", "prompt_mask"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name  # padding must say nothing
    for name in ("pack", "question", "capability", "labelled"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.samples == expected.samples and found.images == expected.images


@pytest.mark.parametrize("chosen", [[0], [1], [2], [5], [0, 2], [1, 3], [0, 1, 2], [3, 5], [0, 2, 3, 4, 5]])
def test_a_view_is_the_batch_of_its_samples(collate: Collator, packs: list[Pack], batch: Batch, chosen: list[int]) -> None:
    view = batch.select(chosen)
    kept = {batch.samples[index].source for index in chosen}
    expected = collate([some for pack in packs if (some := tuple(sample for sample in pack if sample.source in kept))])
    assert_same_batch(view.batch, expected)
    assert not view.is_whole


@pytest.mark.parametrize("chosen", [[0], [1, 3], [0, 2, 3, 4, 5]])
def test_a_view_knows_where_its_tokens_are(batch: Batch, chosen: list[int]) -> None:
    view = batch.select(chosen)
    real = view.batch.token_mask
    for name in ("input_ids", "labels", "prompt_mask"):
        there = getattr(batch, name)[view.rows].gather(1, view.positions)
        assert torch.equal(there[real], getattr(view.batch, name)[real])


def test_the_view_of_all_samples_is_the_batch(batch: Batch) -> None:
    view = batch.select(range(len(batch.samples)))
    assert view.is_whole and view.batch is batch
    assert torch.equal(view.rows, torch.arange(len(batch.input_ids)))
    assert torch.equal(view.batch.input_ids[view.rows].gather(1, view.positions), batch.input_ids)


def test_to_moves_every_tensor(batch: Batch) -> None:
    moved = batch.to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    assert len(tensors) == 10
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.samples == batch.samples


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_pixels_are_the_processors(collate: Collator, family_run: TinyRun) -> None:
    paths = [family_run.folder / "images" / f"{number}.png" for number in (2, 0, 2)]
    found = collate.pixel_values(paths, "here")
    processor = collate.processor
    expected = np.stack([processor.normalize(processor.resize(load_image(path))) for path in paths])
    assert found.shape == (3, *processor.images.pixel_shape)
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(collate.pixel_values(paths[:1], "here"), found[:1])  # from the kept tiles


def test_kept_tiles_are_bounded(family_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    import drivekd.data.batch as module

    read: list[Path] = []

    def counted(path: Path) -> Any:
        read.append(path)
        return load_image(path)

    monkeypatch.setattr(module, "load_image", counted)
    paths: Sequence[Path] = [family_run.folder / "images" / f"{number}.png" for number in range(3)]
    for cache_bytes, reads in ((1 << 20, 3), (0, 6)):
        read.clear()
        collate = Collator(load_processor(family_run.student), cache_bytes=cache_bytes)
        for _ in range(2):
            collate.pixel_values(paths, "here")
        assert len(read) == reads


def test_a_picture_that_cannot_be_read_is_named_with_its_record(collate: Collator, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"records\.json, record 4: images: .*broken\.png"):
        collate.pixel_values([broken], "records.json, record 4")
    Image.new("RGB", (8, 8)).save(broken)
    assert len(collate.pixel_values([broken], "records.json, record 4")) == 1  # a failure is not kept
