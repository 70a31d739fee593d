"""A micro-batch's losses: the batch, cross-entropy, signals and teachers, each against a slower, more obvious way.

Models of 32 and 48 channels, six pictures, one thread; every trainer here is a real one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_run import NO_TEACHERS, TinyRun, make_tokenizer, start_trainer, stepped
from torch import Tensor

from drivekd.data.batch import IGNORED_LABEL, Batch, Collator
from drivekd.data.sample import CAPABILITIES, Capability, Sample
from drivekd.distill.objectives import mixing_matrix
from drivekd.distill.run import read_training_samples
from drivekd.distill.teachers import Teacher
from drivekd.distill.trainer import Trainer
from drivekd.errors import ConfigError, DataError
from drivekd.models.internvl import load_model
from drivekd.models.tiny import TinySize, build_tiny, write_checkpoint
from drivekd.processor import load_processor

pytestmark = pytest.mark.usefixtures("one_thread")

Start = Callable[..., Trainer]


@pytest.fixture
def start(tiny_run: TinyRun) -> Start:
    return partial(start_trainer, tiny_run)


def assert_close(found: Tensor, expected: Tensor, rtol: float) -> None:
    """Relative error of whole vectors."""
    assert float((found - expected).norm() / expected.norm()) <= rtol


def samples_of(trainer: Trainer, capability: Capability, *, answered: bool = True) -> list[Sample]:
    found = [sample for sample in trainer._samples.labelled if sample.capability == capability]
    return found if answered else [replace(sample, answer=None) for sample in found]


# --- the batch ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collate(tiny_run: TinyRun) -> Collator:
    return Collator(load_processor(tiny_run.student))


def test_a_batch_is_its_samples_side_by_side(tiny_run: TinyRun, collate: Collator) -> None:
    samples = read_training_samples(tiny_run.config()).labelled[:3]
    batch = collate([samples[0], replace(samples[1], answer=None), samples[2]])
    assert batch.pixel_values.shape == (4, 3, 56, 56)  # planning shows two pictures
    assert batch.vision_mask.sum(1).tolist() == [4, 4, 8]
    assert batch.labelled.tolist() == [True, False, True]
    assert batch.capability.tolist() == [0, 1, 2]
    prompts = load_processor(tiny_run.student).prompts
    for row, sample in enumerate(samples):
        prompt = prompts.prefix(len(sample.images)) + prompts.suffix(sample.question)
        answer = prompts.answer(sample.answer or "") if row != 1 else []
        length = len(prompt) + len(answer)
        assert batch.input_ids[row, :length].tolist() == prompt + answer
        assert batch.labels[row].tolist() == [
            *([IGNORED_LABEL] * len(prompt)),
            *answer,
            *([IGNORED_LABEL] * (batch.labels.shape[1] - length)),
        ]
        assert batch.attention_mask[row].tolist() == [position < length for position in range(batch.labels.shape[1])]
        assert batch.prompt_mask[row].tolist() == [position < len(prompt) for position in range(batch.labels.shape[1])]


def test_padding_is_never_vision(tiny_run: TinyRun) -> None:
    """Also not where the padding id is the image token's."""
    collate = Collator(load_processor(tiny_run.student))
    samples = read_training_samples(tiny_run.config()).labelled[:3]
    collate._processor = replace(collate._processor, prompts=_with_image_token_id(collate._processor.prompts, 0))
    batch = collate(samples)
    assert not bool((batch.vision_mask & ~batch.attention_mask).any())


def _with_image_token_id(prompts: Any, image_token_id: int) -> Any:
    import copy

    other = copy.copy(prompts)
    other.image_token_id = image_token_id
    return other


@pytest.mark.parametrize("field", ["question", "answer"])
def test_a_marker_in_a_record_is_named_with_its_record(tiny_run: TinyRun, collate: Collator, field: str) -> None:
    sample = read_training_samples(tiny_run.config()).labelled[2]
    with pytest.raises(DataError, match=r"train\.json, record 3: the (question|answer) contains the chat marker"):
        collate([replace(sample, **{field: "Look <|im_end|>"})])


# --- cross-entropy --------------------------------------------------------------------------------------------------


def test_ce_is_the_mean_over_samples_of_the_mean_over_answers(start: Start) -> None:
    """Against full logits of one sample at a time: no padding, no gathering, no micro-batches."""
    trainer = start(*NO_TEACHERS, "training.batch_size=7")
    reference = load_model(trainer.config.student.checkpoint)
    samples = trainer._step_samples()
    losses = []
    for sample in samples:
        batch = trainer._collate([sample])
        logits = reference(input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False).logits[0]
        losses.append(F.cross_entropy(logits[:-1], batch.labels[0, 1:], ignore_index=IGNORED_LABEL))
    expected = torch.stack(losses).mean()
    expected.backward()
    record, found = stepped(trainer)
    assert record["loss"]["ce"] == pytest.approx(float(expected.detach()), rel=1e-5)  # fp32
    gradient = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    assert_close(found, gradient, rtol=1e-4)  # fp32, sums of padded and unpadded batches in another order


@pytest.mark.parametrize("anchor", ["shared", "own"])
@pytest.mark.parametrize("size", [1, 2, 64])
def test_micro_batches_add_up_to_the_one_big_batch(start: Start, anchor: str, size: int) -> None:
    """batch_size 7 and unlabelled 3 over three capabilities: every size leaves short last micro-batches."""
    settings = ("training.batch_size=7", "training.unlabelled_batch_size=3", f"projection.anchor={anchor}")
    expected_record, expected = stepped(start(*settings, "training.micro_batch_size=3"))
    record, found = stepped(start(*settings, f"training.micro_batch_size={size}"))
    assert record["loss"] == pytest.approx(expected_record["loss"], rel=1e-5)  # fp32
    assert_close(found, expected, rtol=1e-4)  # fp32; relative weights multiply small gradients


def test_own_anchors_split_ce_by_capability(start: Start) -> None:
    settings = ("projection.method=sum", "signals.weighting=static", "training.batch_size=18")  # six of each capability
    shared, shared_update = stepped(start(*settings))
    own, own_update = stepped(start(*settings, "projection.anchor=own"))
    assert sum(own["loss"][f"ce_{name}"] for name in CAPABILITIES) / 3 == pytest.approx(shared["loss"]["ce"], rel=1e-5)
    assert_close(own_update, shared_update, rtol=1e-5)  # fp32: the same terms, added in another order


# --- signals --------------------------------------------------------------------------------------------------------


def losses_of(trainer: Trainer, batch: Batch) -> dict[str, float]:
    found = trainer._objectives(batch, num_labelled=max(1, int(batch.labelled.sum())), num_samples=len(batch.labels))
    return {trainer._rows.names[row]: float(loss.detach()) for row, loss in found.items()}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_sample_learns_from_its_capabilitys_teacher(start: Start, capability: Capability) -> None:
    trainer = start()
    batch = trainer._collate(samples_of(trainer, capability))
    assert set(losses_of(trainer, batch)) == {"ce", capability}


def test_unlabelled_samples_have_no_ce(start: Start) -> None:
    trainer = start()
    batch = trainer._collate(samples_of(trainer, "planning", answered=False))
    assert set(losses_of(trainer, batch)) == {"planning"}


def test_signal_losses_are_the_mean_over_samples_of_the_plain_formula(start: Start) -> None:
    """One sample at a time through eager attention of both models, straight from METHOD section 1."""
    trainer = start()
    student, teacher = (
        load_model(path, attention="eager") for path in (trainer.config.student.checkpoint, trainer.config.teachers.planning)
    )
    samples = samples_of(trainer, "planning")[:3]
    expected = []
    for sample in samples:
        batch = trainer._collate([sample])
        maps = [
            model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False, output_attentions=True)
            .attentions[-2][0]
            .mean(0)
            for model in (student, teacher)
        ]
        pairs = ~batch.vision_mask[0][:, None] & batch.vision_mask[0][None, :]
        expected.append(float((maps[0] - maps[1])[pairs].square().mean().detach()))
    found = losses_of(trainer, trainer._collate(samples))["planning"]
    assert found == pytest.approx(sum(expected) / 3, rel=1e-3)  # squares of fp32 differences of order 1e-3


def test_the_released_mixing_is_a_weighted_mean_of_teachers(start: Start) -> None:
    matrix = mixing_matrix("released")
    assert matrix.diagonal().tolist() == pytest.approx([0.8] * 3)
    assert matrix.sum(1).tolist() == pytest.approx([1.0] * 3)
    routed, mixed = start(), start("signals.mixing=released")
    batch = routed._collate(samples_of(routed, "perception"))
    found = losses_of(mixed, batch)
    for index, name in enumerate(CAPABILITIES):
        pretended = replace(batch, capability=torch.full_like(batch.capability, index))
        expected = float(matrix[0, index]) * losses_of(routed, pretended)[name]
        assert found[name] == pytest.approx(expected, rel=1e-5)  # fp32


def disturbed(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, positions: Callable[[Batch], Tensor]) -> None:
    """Let the teacher say something else on the rows that `positions(batch)` [B, S] marks."""
    assert trainer.teachers is not None
    honest = trainer.teachers.attention

    def attention(capability: Capability, batch: Batch) -> dict[int, Tensor]:
        maps = honest(capability, batch)
        return {layer: values.masked_fill(positions(batch)[:, :, None], 0.3) for layer, values in maps.items()}

    monkeypatch.setattr(trainer.teachers, "attention", attention)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("rows", "sees_answers"), [("all", True), ("question", False)])
def test_rows_behind_the_prompt_count_only_where_they_may(
    start: Start, monkeypatch: pytest.MonkeyPatch, capability: Capability, rows: str, sees_answers: bool
) -> None:
    trainer = start(f"signals.rows={rows}")
    batch = trainer._collate(samples_of(trainer, capability))
    before = losses_of(trainer, batch)[capability]
    disturbed(trainer, monkeypatch, lambda batch: ~batch.prompt_mask)
    after = losses_of(trainer, batch)[capability]
    assert (after != before) == sees_answers


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_unlabelled_samples_compare_the_prompts_rows_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch, capability: Capability
) -> None:
    """Rows behind the answer's tokens would see the answer, if a batch still had one."""
    trainer = start()
    batch = trainer._collate(samples_of(trainer, capability))
    batch = replace(batch, labelled=torch.zeros_like(batch.labelled))
    before = losses_of(trainer, batch)
    disturbed(trainer, monkeypatch, lambda batch: ~batch.prompt_mask)
    assert losses_of(trainer, batch) == before
    disturbed(trainer, monkeypatch, lambda batch: batch.prompt_mask)
    assert losses_of(trainer, batch) != before


def test_the_record_has_each_terms_mean_over_its_own_samples(start: Start) -> None:
    """Labelled samples for a CE term, all of the capability for a signal; a term without samples is left out."""
    trainer = start("training.batch_size=5", "training.unlabelled_batch_size=4", "projection.anchor=own")
    samples = trainer._step_samples()
    expected: dict[str, float] = {}
    for name in {sample.capability for sample in samples}:
        expected |= losses_of(trainer, trainer._collate([sample for sample in samples if sample.capability == name]))
    assert trainer.step()["loss"] == pytest.approx(expected, rel=1e-5)  # fp32


def test_answers_in_an_unlabelled_file_are_not_learnt_from(tiny_run: TinyRun) -> None:
    config = tiny_run.config(f"data.unlabelled=[{tiny_run.folder / 'train.json'}]")
    samples = read_training_samples(config)
    assert [sample.answer for sample in samples.unlabelled] == [None] * 18
    assert all(sample.answer for sample in samples.labelled)


# --- teachers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", [s for r in range(4) for s in itertools.combinations(CAPABILITIES, r)], ids="+".join)
@pytest.mark.parametrize("anchor", ["shared", "own"])
def test_any_subset_of_teachers_trains(start: Start, tiny_run: TinyRun, subset: tuple[Capability, ...], anchor: str) -> None:
    named = ", ".join(f"{name}: {tiny_run.teacher}" for name in subset)
    unlabelled = () if subset else NO_TEACHERS[1:]
    trainer = start(f"teachers={{{named}}}", f"projection.anchor={anchor}", *unlabelled)
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    record = trainer.step()
    assert all(record["loss"][name] > 0 for name in subset)
    assert set(record["signal_scale"]) == set(subset) == set(record["conflict_cosine"])
    assert any(value > 0 for name, value in record["loss"].items() if name.startswith("ce"))
    assert all(math.isfinite(value) for value in record["gradient_norm"].values())
    assert any(not torch.equal(before[name], value) for name, value in trainer.student.state_dict().items())


def test_ce_of_a_capability_without_teacher_takes_part(start: Start, tiny_run: TinyRun) -> None:
    settings = ("signals.planning.weight=0", "signals.weighting=static", "projection.anchor=own")
    _, found = stepped(start(f"teachers={{planning: {tiny_run.teacher}}}", *settings, "training.unlabelled_batch_size=0"))
    _, expected = stepped(start(*NO_TEACHERS))
    assert_close(found, expected, rtol=1e-5)  # fp32


def test_cutting_a_teacher_does_not_change_what_it_says(tiny_run: TinyRun, collate: Collator) -> None:
    batch = collate(read_training_samples(tiny_run.config()).labelled[:3])
    whole, cut = (Teacher(tiny_run.teacher, torch.device("cpu"), torch.float32) for _ in range(2))
    cut.keep_layers(2)
    assert len(cut._model.model.language_model.layers) == 3
    expected, found = whole.attention(batch, (0, 2)), cut.attention(batch, (0, 2))
    assert all(torch.equal(found[layer], expected[layer]) for layer in (0, 2))
    assert not found[0].requires_grad


def tiny_checkpoint(folder: Path, **changes: Any) -> Path:
    size = {"vision_layers": 1, "vision_width": 32, "language_layers": 3, "language_width": 32, "image_size_px": 56}
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(changes.pop("words", []))
    write_checkpoint(folder, build_tiny(TinySize(**{**size, **changes}), tokenizer, seed=5), tokenizer)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"image_size_px": 84}, "tokens per image"), ({"words": ["<c1>"]}, "the same tokenizer")],
    ids=["tiles", "vocabulary"],
)
def test_a_teacher_that_cuts_text_or_images_otherwise_is_refused(
    start: Start, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    other = tiny_checkpoint(tmp_path / "other", **changes)
    with pytest.raises(ConfigError, match=words) as caught:
        start(f"teachers.reasoning={other}")
    assert f"teachers.reasoning = {other}" in str(caught.value)


def test_unlabelled_records_of_an_untaught_capability_are_left_out(start: Start, tiny_run: TinyRun) -> None:
    trainer = start(f"teachers={{planning: {tiny_run.teacher}}}", "training.micro_batch_size=1")
    assert {sample.capability for sample in trainer._samples.unlabelled} == {"planning"}
    trainer.step()
