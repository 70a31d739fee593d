"""One optimizer step, from samples to update: each number equal to a slower, more obvious way of getting it.

Models of 32 and 48 channels, six pictures, one thread; every trainer here is a real one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_run import NO_TEACHERS, TinyRun, make_tokenizer, sharpened
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from drivekd.data.batch import IGNORED_LABEL, Batch, Collator
from drivekd.data.sample import CAPABILITIES, Capability, Sample
from drivekd.distill.objectives import Objectives, mixing_matrix, rows_for
from drivekd.distill.run import read_training_samples
from drivekd.distill.teachers import Teacher
from drivekd.distill.trainer import Trainer, resolve_device
from drivekd.errors import ConfigError, DataError, TrainingError
from drivekd.models.internvl import load_model
from drivekd.models.probe import CAPTURE_ATTENTION, capture_attention
from drivekd.models.tiny import TinySize, build_tiny, tiny_config, write_checkpoint
from drivekd.processor import load_processor

pytestmark = pytest.mark.usefixtures("one_thread")

Start = Callable[..., Trainer]


@pytest.fixture
def start(tiny_run: TinyRun) -> Start:
    """A trainer on tiny_run's configuration with overrides."""

    def call(*overrides: str) -> Trainer:
        config = tiny_run.config(*overrides)
        return Trainer(config, read_training_samples(config))

    return call


def update(trainer: Trainer) -> Tensor:
    """The update direction that the last step gave to AdamW, flat."""
    return torch.cat([p.grad.flatten() for p in trainer.student.parameters() if p.grad is not None])


def stepped(trainer: Trainer) -> tuple[dict[str, Any], Tensor]:
    return trainer.step(), update(trainer)


def assert_close(found: Tensor, expected: Tensor, rtol: float) -> None:
    """Relative error of whole vectors."""
    assert float((found - expected).norm() / expected.norm()) <= rtol


def weights(model: InternVLForConditionalGeneration) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


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
    shared, shared_update = stepped(start("projection.method=sum", "signals.weighting=static"))
    own, own_update = stepped(start("projection.method=sum", "signals.weighting=static", "projection.anchor=own"))
    assert sum(own["loss"][f"ce_{name}"] for name in CAPABILITIES) == pytest.approx(shared["loss"]["ce"], rel=1e-5)
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


def test_unlabelled_samples_compare_the_prompts_rows_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows behind the prompt are padding there: a longer, labelled neighbour must not let them in."""
    trainer = start()
    labelled, unlabelled = samples_of(trainer, "reasoning")[:1], samples_of(trainer, "reasoning", answered=False)[1:3]
    batch = trainer._collate(labelled + unlabelled)
    before = losses_of(trainer, batch)["reasoning"]
    behind = lambda batch: ~batch.prompt_mask & ~batch.labelled[:, None]  # noqa: E731
    disturbed(trainer, monkeypatch, behind)
    assert bool(behind(batch).any())
    assert losses_of(trainer, batch)["reasoning"] == before


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
    before = weights(trainer.student)
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


# --- weights and projection -----------------------------------------------------------------------------------------


def test_sum_is_the_sum_of_the_weighted_gradients(start: Start) -> None:
    weighted = ("signals.weighting=static", "signals.planning.weight=250", "signals.reasoning.weight=40")
    trainer = start("projection.method=sum", *weighted)
    _, found = stepped(trainer)
    fresh = start("projection.method=sum")
    batch = fresh._collate(fresh._step_samples())  # all capabilities in one batch
    losses = fresh._objectives(batch, num_labelled=6, num_samples=9)
    scale = {"ce": 1.0, "perception": 1.0, "reasoning": 40.0, "planning": 250.0}
    total = torch.stack([scale[fresh._rows.names[row]] * loss for row, loss in losses.items()]).sum()
    total.backward()
    assert_close(found, update(fresh), rtol=1e-4)  # fp32; attention gradients are 1e-3 of CE's


def test_agp_without_conflict_is_the_sum_with_ce_counted_per_capability(start: Start) -> None:
    """The signals' gradients are scaled to nothing: only CE's count differs."""
    weak = [f"signals.{name}.weight=1e-9" for name in CAPABILITIES]
    _, plain = stepped(start(*weak, "projection.method=sum"))
    for settings, factor in (((), 3.0), (("projection.anchor_multiplicity=once",), 1.0), (("projection.anchor=own",), 1.0)):
        record, found = stepped(start(*weak, "projection.stages=[1]", *settings))
        assert_close(found, factor * plain, rtol=1e-5)  # fp32
        assert record["stage_2_fired"] == 0


@pytest.mark.parametrize("anchor", ["shared", "own"])
def test_relative_weights_scale_each_signal_to_ces_gradient(start: Start, anchor: str) -> None:
    wanted = {"perception": 0.5, "reasoning": 2.0, "planning": 0.0}
    overrides = [f"signals.{name}.weight={weight}" for name, weight in wanted.items()]
    record = start(*overrides, f"projection.anchor={anchor}").step()
    _, ce = stepped(start(*NO_TEACHERS))
    for name, weight in wanted.items():
        found = record["gradient_norm"][name] * record["signal_scale"][name]
        assert found == pytest.approx(weight * float(ce.norm()), rel=1e-4)  # fp32


def test_static_weights_multiply_the_loss(start: Start) -> None:
    record = start("signals.weighting=static", "signals.reasoning.weight=1500").step()
    assert record["signal_scale"] == {"perception": 1.0, "reasoning": 1500.0, "planning": 1.0}


def test_the_record_says_what_agp_saw(start: Start) -> None:
    trainer = start("projection.method=sum", "signals.weighting=static")
    record = trainer.step()
    gram = trainer._gradients.gram()
    norms = gram.diagonal().sqrt()
    names = trainer._rows.names
    assert record["gradient_norm"]["ce"] == pytest.approx(float(norms[0]), rel=1e-12)
    for name in CAPABILITIES:
        row = names.index(name)
        expected = float(gram[0, row] / norms[0] / norms[row])
        assert record["conflict_cosine"][name] == pytest.approx(expected, rel=1e-9)
    assert record["gradient_norm"]["update"] == pytest.approx(float(update(trainer).norm()), rel=1e-5)  # fp32


def test_rows_name_every_gradient_once(tiny_run: TinyRun) -> None:
    shared = rows_for(tiny_run.config())
    assert shared.names == ("ce", *CAPABILITIES)
    assert shared.pairs == [(0, 1), (0, 2), (0, 3)]
    own = rows_for(tiny_run.config("projection.anchor=own"))
    assert own.names == ("ce_perception", "ce_reasoning", "ce_planning", *CAPABILITIES)
    assert own.pairs == [(0, 3), (1, 4), (2, 5)]
    assert rows_for(tiny_run.config(*NO_TEACHERS, "projection.anchor=own")).names == ("ce",)


# --- what moves -----------------------------------------------------------------------------------------------------


def test_fine_tuning_learns_the_answers(start: Start) -> None:
    trainer = start(*NO_TEACHERS, "training.batch_size=18", "training.micro_batch_size=6", "optimizer.learning_rate=1e-2")
    first = trainer.validate()
    for _ in range(40):
        trainer.step()
    last = trainer.validate()
    assert first is not None
    assert last is not None
    assert last < first / 6  # from ln 400 = 6 to .38, the same on four seeds


def test_distillation_brings_the_maps_nearer(start: Start) -> None:
    trainer = start("signals.reasoning.weight=3", "training.batch_size=18", "optimizer.learning_rate=1e-3")
    first = trainer.step()["loss"]
    for _ in range(12):
        last = trainer.step()["loss"]
    assert last["reasoning"] < 0.8 * first["reasoning"]


@pytest.mark.parametrize("part", ["vision_encoder", "projector", "language_model"])
def test_only_the_named_parts_move(start: Start, part: str) -> None:
    trainer = start(f"student.train=[{part}]")
    before = weights(trainer.student)
    trainer.step()
    moved = {name for name, value in trainer.student.state_dict().items() if not torch.equal(before[name], value)}
    prefix = {"vision_encoder": "vision_tower", "projector": "multi_modal_projector", "language_model": "language_model"}[part]
    assert moved
    assert all(prefix in name or (name == "lm_head.weight" and part == "language_model") for name in moved)


def test_an_untied_head_belongs_to_the_language_model(start: Start, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    size = TinySize(vision_layers=1, vision_width=32, language_layers=3, language_width=32, image_size_px=56)
    config = tiny_config(size, tokenizer)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = sharpened(InternVLForConditionalGeneration(config))
    assert model.lm_head.weight is not model.model.language_model.embed_tokens.weight
    write_checkpoint(tmp_path / "untied", model, tokenizer)
    trainer = start(f"student.checkpoint={tmp_path / 'untied'}", "student.train=[language_model]")
    before = weights(trainer.student)
    trainer.step()
    for name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        assert not torch.equal(before[name], trainer.student.state_dict()[name])


def test_bf16_moves_weights_that_pure_bf16_would_leave(start: Start) -> None:
    """METHOD section 4, point 1: at 5e-5, steps are below bf16's spacing wherever |w| >= 1/64."""
    settings = (*NO_TEACHERS, "optimizer.learning_rate=5e-5", "training.precision=bf16")
    trainer = start(*settings)
    pure = load_model(trainer.config.student.checkpoint).bfloat16()
    optimizer = torch.optim.AdamW(pure.parameters(), lr=5e-5, weight_decay=0.0)
    before = weights(trainer.student)
    for _ in range(3):
        trainer.step()
        named = dict(trainer.student.named_parameters())
        for name, parameter in pure.named_parameters():
            parameter.grad = named[name].grad.bfloat16() if named[name].grad is not None else None
        optimizer.step()
    large, moved, moved_pure = 0, 0, 0
    for name, parameter in trainer.student.named_parameters():
        assert parameter.dtype == torch.float32
        chosen = (before[name].abs() >= 1 / 64) & (parameter.grad != 0)
        large += int(chosen.sum())
        moved += int((parameter != before[name])[chosen].sum())
        moved_pure += int((dict(pure.named_parameters())[name] != before[name].bfloat16())[chosen].sum())
    assert large > 10_000
    assert moved > 0.99 * large
    assert moved_pure < 0.05 * large
    assert all(value.dtype == torch.float32 for state in trainer.optimizer.state.values() for value in state.values())


def test_bf16_computes_nearly_the_same_step(start: Start) -> None:
    full, full_update = stepped(start("training.precision=fp32"))
    half, half_update = stepped(start("training.precision=bf16"))
    assert half["loss"]["ce"] == pytest.approx(full["loss"]["ce"], rel=2e-2)  # bf16 has 8 bits
    assert half["loss"]["ce"] != full["loss"]["ce"]  # it did compute in bf16
    assert float(F.cosine_similarity(full_update, half_update, dim=0)) > 0.97


# --- the optimizer --------------------------------------------------------------------------------------------------


def test_warm_up_and_cosine_by_hand(start: Start) -> None:
    trainer = start("optimizer.warmup_steps=2", "optimizer.schedule=cosine", "optimizer.learning_rate=1.0", "training.steps=6")
    found = [trainer._learning_rate(step) for step in range(6)]
    expected = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4))]
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_rate_of_the_record_is_the_rate_of_the_step(start: Start) -> None:
    trainer = start("optimizer.warmup_steps=4", "optimizer.learning_rate=4e-3")
    rates = [trainer.step()["learning_rate"] for _ in range(2)]
    assert rates == pytest.approx([1e-3, 2e-3])
    assert trainer.optimizer.param_groups[0]["lr"] == rates[1]


def test_clipping_bounds_the_update_and_reports_what_it_was(start: Start) -> None:
    free, free_update = stepped(start())
    norm = float(free_update.norm())
    record, found = stepped(start(f"optimizer.clip_norm={norm / 10}"))
    assert record["gradient_norm"]["update"] == pytest.approx(norm, rel=1e-4) == free["gradient_norm"]["update"]
    assert_close(found, free_update / 10, rtol=1e-4)  # torch divides by norm + 1e-6


def test_steps_are_a_function_of_seed_and_step(start: Start) -> None:
    first, second, other = start(), start(), start("seed=4")
    for trainer in (first, second, other):
        trainer.step()
        torch.rand(7)  # someone else's draws from torch's global generator must not matter
        trainer.step()
    assert torch.equal(update(first), update(second))
    assert not torch.equal(update(first), update(other))


# --- validation -----------------------------------------------------------------------------------------------------


def test_validation_is_ce_over_all_samples_and_touches_nothing(start: Start) -> None:
    trainer = start("training.batch_size=18", "training.unlabelled_batch_size=0")
    before = weights(trainer.student)
    found = trainer.validate()
    assert trainer.student.training
    assert all(torch.equal(before[name], value) for name, value in trainer.student.state_dict().items())
    assert found == pytest.approx(trainer.step()["loss"]["ce"], rel=1e-5)  # one epoch of the same 18 records, fp32
    assert start("data.validation=null").validate() is None


# --- stops ----------------------------------------------------------------------------------------------------------


def test_a_nan_loss_stops_before_the_update_and_is_named(start: Start) -> None:
    trainer = start()
    trainer.step()
    head = trainer.student.model.language_model.norm.weight
    head.data[0] = float("nan")
    before = weights(trainer.student)
    with pytest.raises(TrainingError, match=r"step 2: the loss term 'ce' is nan; training stopped before the update"):
        trainer.step()
    assert all(torch.equal(before[name].nan_to_num(), value.nan_to_num()) for name, value in trainer.student.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_before_the_update(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss can have an infinite gradient; AdamW would turn every weight into NaN."""
    trainer = start()
    before = weights(trainer.student)
    honest = Objectives.__call__

    def with_infinite_slope(self: Objectives, batch: Batch, **counts: int) -> dict[int, Tensor]:
        losses = honest(self, batch, **counts)
        return {row: loss + (loss - loss.detach()).sqrt() for row, loss in losses.items()}

    monkeypatch.setattr(Objectives, "__call__", with_infinite_slope)
    with pytest.raises(TrainingError, match=r"step 1: the gradient of the loss term 'ce' is (nan|inf)"):
        trainer.step()
    assert all(torch.equal(before[name], value) for name, value in trainer.student.state_dict().items())


def test_out_of_memory_stops_with_advice(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(trainer, "_objectives", full)
    with pytest.raises(TrainingError, match=r"out of memory on cpu; lower training\.micro_batch_size \(now 4\).*20 MiB"):
        trainer.step()
    assert trainer.steps_done == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds no CUDA device; use cpu or auto"):
        resolve_device("cuda:1")


def test_the_probe_is_off_outside_of_its_block(start: Start) -> None:
    """Validation and the answers of a capability without teacher pay nothing for it."""
    trainer = start()
    layers = trainer.student.model.language_model.layers
    trainer.step()
    assert all("drivekd_attention_sink" not in vars(layer.self_attn) for layer in layers)
    with capture_attention(layers, []) as maps:
        trainer.student.model(**_inputs(trainer._collate(trainer._step_samples())))
    assert maps == {}
    assert trainer.student.config.text_config._attn_implementation == CAPTURE_ATTENTION


def _inputs(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "pixel_values": batch.pixel_values, "attention_mask": batch.attention_mask.long()}
