"""A micro-batch's losses: cross-entropy, signals and teachers, each against a slower, more obvious way.

Models of 32 and 48 channels, six pictures, one thread; every trainer here is a real one. Packing has its own file.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_run import NO_TEACHERS, Pair, TinyRun, load_pair, make_tokenizer, start_trainer, stepped
from torch import Tensor

from drivekd.data.batch import IGNORED_LABEL, Batch
from drivekd.data.packs import single_packs
from drivekd.distill.rows import mixing_matrix, row_shares, rows_for
from drivekd.distill.signals import Signal
from drivekd.distill.teachers.features import Towers
from drivekd.distill.teachers.teachers import Teacher
from drivekd.distill.training.train import read_training_samples
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import ConfigError
from drivekd.hf_checkpoint import Checkpoint
from drivekd.models import encode_images, language_model, load_model, rotary_positions
from drivekd.models.tiny import TinySize, build_tiny, write_checkpoint
from drivekd.sample import CAPABILITIES, Capability, Sample

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

Start = Callable[..., Trainer]


@pytest.fixture
def start(family_run: TinyRun) -> Start:
    return partial(start_trainer, family_run)


def assert_close(found: Tensor, expected: Tensor, rtol: float) -> None:
    """Relative error of whole vectors."""
    assert float((found - expected).norm() / expected.norm()) <= rtol


def samples_of(run: TinyRun, *capabilities: Capability, answered: bool = True) -> list[Sample]:
    found = [sample for sample in read_training_samples(run.config()).labelled if sample.capability in capabilities]
    return found if answered else [replace(sample, answer=None) for sample in found]


def batch_of(pair: Pair, samples: list[Sample]) -> Batch:
    return pair.collate(single_packs(samples))


def run_alone(model: Any, pair: Pair, sample: Sample, **options: Any) -> tuple[Batch, Any]:
    """One sample through transformers' own decoder: no padding, no packing, no mask of ours."""
    batch = batch_of(pair, [sample])
    features = encode_images(model, pair.collate.pixel_values(sample.images, "here")).flatten(0, 1)
    embeds = model.get_input_embeddings()(batch.input_ids).masked_scatter(batch.vision_mask[..., None], features)
    positions = rotary_positions(model, batch.positions)
    return batch, language_model(model)(inputs_embeds=embeds, position_ids=positions, use_cache=False, **options)


# --- cross-entropy --------------------------------------------------------------------------------------------------


def test_ce_is_the_mean_over_samples_of_the_mean_over_answers(family_run: TinyRun) -> None:
    """Against full logits of one sample at a time: no padding, no gathering, no micro-batches."""
    pair = load_pair(family_run, *NO_TEACHERS)
    reference = load_model(family_run.student)
    samples = samples_of(family_run, *CAPABILITIES)[:7]
    losses = []
    for sample in samples:
        batch, output = run_alone(reference, pair, sample)
        logits = reference.lm_head(output.last_hidden_state)[0]
        losses.append(F.cross_entropy(logits[:-1], batch.labels[0, 1:], ignore_index=IGNORED_LABEL))
    expected = torch.stack(losses).mean()
    expected.backward()
    gradient = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    found, gradients = pair.gradients([single_packs(samples[:4]), single_packs(samples[4:])])
    assert found["ce"] == pytest.approx(float(expected.detach()), rel=1e-5)  # fp32
    assert_close(gradients["ce"], gradient, rtol=1e-5)  # fp32, sums of padded and unpadded batches in another order


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


@pytest.fixture(scope="module")
def pair(family_run: TinyRun) -> Pair:
    return load_pair(family_run)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_sample_learns_from_its_capabilitys_teacher(family_run: TinyRun, pair: Pair, capability: Capability) -> None:
    batch = batch_of(pair, samples_of(family_run, capability))
    assert set(pair.losses(batch)) == {"ce", capability}


def test_unlabelled_samples_have_no_ce(family_run: TinyRun, pair: Pair) -> None:
    batch = batch_of(pair, samples_of(family_run, "planning", answered=False))
    assert set(pair.losses(batch)) == {"planning"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_signal_losses_are_the_mean_over_samples_of_the_plain_formula(
    family_run: TinyRun, pair: Pair, capability: Capability
) -> None:
    """One sample at a time through eager attention of both models, straight from docs/method.md. 3 and 4 layers deep."""
    student, teacher = (load_model(path, attention="eager") for path in (family_run.student, family_run.teacher))
    groups = {"perception": [(0, [0])], "planning": [(1, [2])], "reasoning": [(0, [0, 1]), (1, [1, 2])]}[capability]
    samples = samples_of(family_run, capability)[:3]
    expected = []
    for sample in samples:
        with torch.no_grad():
            batch, ours = run_alone(student, pair, sample, output_attentions=True)
            _, theirs = run_alone(teacher, pair, sample, output_attentions=True)
        text = ~batch.vision_mask[0]
        pairs = torch.ones(len(text), len(text), dtype=torch.bool)
        if capability != "reasoning":
            pairs = text[:, None] & ~text[None]
        layers = []
        for layer, group in groups:
            target = torch.stack([theirs.attentions[other][0].mean(0) for other in group]).mean(0)
            layers.append(float((ours.attentions[layer][0].mean(0) - target)[pairs].square().mean()))
        expected.append(sum(layers) / len(layers))
    found = pair.losses(batch_of(pair, samples))[capability]
    assert found == pytest.approx(sum(expected) / 3, rel=1e-4)  # squares of fp32 differences of 1e-2


def test_kl_is_between_the_next_words_of_both_models(family_run: TinyRun) -> None:
    pair = load_pair(family_run, "signals.planning.loss=kl")
    student, teacher = (load_model(path) for path in (family_run.student, family_run.teacher))
    samples = samples_of(family_run, "planning")[:3]
    expected = []
    for sample in samples:
        with torch.no_grad():
            batch, _ = run_alone(student, pair, sample)
            logits = [model.lm_head(run_alone(model, pair, sample)[1].last_hidden_state)[0] for model in (teacher, student)]
        p, q = (x[:-1][batch.labels[0, 1:] != IGNORED_LABEL].log_softmax(-1) for x in logits)
        expected.append(float((p.exp() * (p - q)).sum(-1).mean()))
    assert pair.losses(batch_of(pair, samples))["planning"] == pytest.approx(sum(expected) / 3, rel=1e-4)  # fp32


def resized(source: Path, folder: Path, rows: int) -> Path:
    """A copy whose embedding and head have so many rows more; below 0: fewer."""
    shutil.copytree(source, folder)
    model = load_model(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + rows, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def test_kl_is_over_the_words_that_both_models_have(family_run: TinyRun, tmp_path: Path) -> None:
    """One tokenizer, heads padded to different lengths: Qwen2.5-VL's 3B has 151,936 rows, its 7B 152,064."""
    padded = resized(family_run.teacher, tmp_path / "padded", 24)
    loss, samples = "signals.planning.loss=kl", samples_of(family_run, "planning")[:3]
    pair = load_pair(family_run, loss, f"teachers={{planning: {padded}}}")
    expected = load_pair(family_run, loss, f"teachers={{planning: {family_run.teacher}}}")
    found = pair.losses(batch_of(pair, samples))["planning"]
    assert found == pytest.approx(expected.losses(batch_of(expected, samples))["planning"], rel=1e-6)
    other_way = load_pair(family_run, loss, f"student.checkpoint={padded}", f"teachers={{planning: {family_run.student}}}")
    assert other_way.losses(batch_of(other_way, samples))["planning"] > 0


@pytest.mark.parametrize("key", ["student.checkpoint", "teachers.planning"])
def test_a_model_with_fewer_words_than_its_tokenizer_is_refused_before_the_first_step(
    tiny_run: TinyRun, tmp_path: Path, key: str
) -> None:
    cut = resized(tiny_run.student, tmp_path / "cut", -3)
    override = f"student.checkpoint={cut}" if key == "student.checkpoint" else f"teachers={{planning: {cut}}}"
    with pytest.raises(ConfigError, match=rf"{key} = .*cut: config.json says \d+ words, the tokenizer has ids up to \d+"):
        load_pair(tiny_run, override)


def test_the_released_mixing_is_a_weighted_mean_of_teachers(family_run: TinyRun, pair: Pair) -> None:
    matrix = mixing_matrix("released")
    samples = samples_of(family_run, "perception")
    found = load_pair(family_run, "signals.mixing=released").losses(batch_of(pair, samples))
    for index, name in enumerate(CAPABILITIES):
        pretended = [replace(sample, capability=name) for sample in samples]
        expected = float(matrix[0, index]) * pair.losses(batch_of(pair, pretended))[name]
        assert found[name] == pytest.approx(expected, rel=1e-5)  # fp32


# --- rows -----------------------------------------------------------------------------------------------------------


def disturbed(pair: Pair, monkeypatch: pytest.MonkeyPatch, positions: Callable[[Batch], Tensor]) -> None:
    """Let the teacher say something else on the rows that `positions(batch)` [B, S] marks."""
    assert pair.teachers is not None
    honest = Teacher.maps

    def maps(self: Teacher, batch: Batch, signals: list[Signal]) -> Any:
        found = honest(self, batch, signals)
        at = found.at

        def changed(signal: Signal, layer: int, view: Any, places: Any) -> Tensor:
            marked = positions(view.batch).gather(1, places.rows)
            return at(signal, layer, view, places).masked_fill(marked[:, :, None], 0.3)

        found.at = changed  # type: ignore[method-assign]
        return found

    monkeypatch.setattr(Teacher, "maps", maps)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("rows", ["all", "question", "answer"])
def test_rows_count_only_where_they_may(
    family_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capability: Capability, rows: str
) -> None:
    pair = load_pair(family_run, f"signals.rows={rows}")
    batch = batch_of(pair, samples_of(family_run, capability))
    before = pair.losses(batch)[capability]
    for marked, matters in ((lambda b: ~b.prompt_mask, rows != "question"), (lambda b: b.prompt_mask, rows != "answer")):
        with monkeypatch.context() as patch:
            disturbed(pair, patch, marked)
            assert (pair.losses(batch)[capability] != before) == matters


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_unlabelled_samples_compare_the_prompts_rows_whatever_is_asked(family_run: TinyRun, capability: Capability) -> None:
    found = []
    for rows in ("all", "question", "answer"):
        pair = load_pair(family_run, f"signals.rows={rows}")
        found.append(pair.losses(batch_of(pair, samples_of(family_run, capability, answered=False)))[capability])
    assert found[0] > 0
    assert found[1] == found[0] == found[2]


# --- what a step's record says --------------------------------------------------------------------------------------


def test_the_record_has_each_terms_mean_over_its_own_samples(start: Start, family_run: TinyRun) -> None:
    """Labelled samples for a CE term, all of the capability for a signal; a term without samples is left out."""
    settings = ("training.batch_size=18", "training.unlabelled_batch_size=18", "projection.anchor=own")
    pair, every = load_pair(family_run, *settings), read_training_samples(family_run.config())
    expected: dict[str, float] = {}
    for name in CAPABILITIES:
        chosen = [sample for sample in (*every.labelled, *every.unlabelled) if sample.capability == name]
        expected |= pair.losses(batch_of(pair, chosen))
    assert start(*settings).step()["loss"] == pytest.approx(expected, rel=1e-5)  # fp32


def test_shares_are_parts_of_the_step(family_run: TinyRun) -> None:
    """Four labelled samples of six, of which two are of one capability; a share is what divides a row's sum."""
    samples = samples_of(family_run, *CAPABILITIES)[:4] + samples_of(family_run, "planning", answered=False)[:2]
    rows = rows_for(family_run.config("projection.anchor=own"))
    shares = row_shares(rows, samples, torch.tensor([[0.8, 0.1, 0.1]] * 6))
    expected = {"ce_perception": 0.5, "ce_reasoning": 0.25, "ce_planning": 0.25}
    assert shares == pytest.approx(expected | {"perception": 0.8, "reasoning": 0.1, "planning": 0.1})


def test_answers_in_an_unlabelled_file_are_not_learnt_from(tiny_run: TinyRun) -> None:
    config = tiny_run.config(f"data.unlabelled=[{tiny_run.folder / 'train.json'}]")
    samples = read_training_samples(config)
    assert [sample.answer for sample in samples.unlabelled] == [None] * 18
    assert all(sample.answer for sample in samples.labelled)


# --- teachers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", [s for r in range(4) for s in itertools.combinations(CAPABILITIES, r)], ids="+".join)
@pytest.mark.parametrize("anchor", ["shared", "own"])
def test_any_subset_of_teachers_trains(tiny_run: TinyRun, subset: tuple[Capability, ...], anchor: str) -> None:
    named = ", ".join(f"{name}: {tiny_run.teacher}" for name in subset)
    unlabelled = () if subset else NO_TEACHERS[1:]
    trainer = start_trainer(tiny_run, f"teachers={{{named}}}", f"projection.anchor={anchor}", *unlabelled)
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    record = trainer.step()
    assert all(record["loss"][name] > 0 for name in subset)
    assert set(record["weight"]) == {"ce", *subset}
    assert set(record["conflict_cosine"]) == set(subset)
    assert any(value > 0 for name, value in record["loss"].items() if name.startswith("ce"))
    assert all(math.isfinite(value) for value in record["gradient_norm"].values())
    assert any(not torch.equal(before[name], value) for name, value in trainer.student.state_dict().items())


def test_ce_of_a_capability_without_teacher_takes_part(tiny_run: TinyRun) -> None:
    settings = ("signals.planning.weight=0", "signals.weighting=static", "projection.anchor=own")
    only = f"teachers={{planning: {tiny_run.teacher}}}"
    _, found = stepped(start_trainer(tiny_run, only, *settings, "training.unlabelled_batch_size=0"))
    _, expected = stepped(start_trainer(tiny_run, *NO_TEACHERS))
    assert_close(found, expected, rtol=1e-5)  # fp32


def test_cutting_a_teacher_does_not_change_what_it_says(family_run: TinyRun, pair: Pair) -> None:
    """It ends behind the last layer that a signal reads, and has no head; for words it needs both."""
    batch = batch_of(pair, samples_of(family_run, "planning")[:3])
    planning = Signal("planning", "full_map", "mse", (1,), ((2,),))
    words = Signal("reasoning", "full_map", "kl", (), ())

    def teacher(signals: list[Signal]) -> Teacher:
        made = Teacher(Checkpoint.open(family_run.teacher), Towers(pair.collate), torch.device("cpu"), torch.float32)
        made.signals = signals
        return made

    whole, cut = teacher([planning, words]), teacher([planning])
    assert (len(language_model(whole.model).layers), len(language_model(cut.model).layers)) == (4, 3)
    assert not list(cut.model.lm_head.parameters())
    expected, found = (made.maps(batch, [planning]).captured.attention[2] for made in (whole, cut))
    assert torch.equal(found, expected)
    assert not found.requires_grad


def tiny_checkpoint(folder: Path, **changes: Any) -> Path:
    size = {"vision_layers": 1, "vision_width": 32, "language_layers": 3, "language_width": 32, "image_size_px": 56}
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(changes.pop("words", []))
    write_checkpoint(folder, build_tiny(TinySize(**{**size, **changes}), tokenizer, seed=5), tokenizer)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"image_size_px": 84}, "tokens per image"), ({"words": ["<c1>"]}, "the same tokenizer; '.+' is .* in the teacher's")],
    ids=["tiles", "vocabulary"],
)
def test_a_teacher_that_cuts_text_or_images_otherwise_is_refused(
    tiny_run: TinyRun, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    other = tiny_checkpoint(tmp_path / "other", **changes)
    with pytest.raises(ConfigError, match=words) as caught:
        start_trainer(tiny_run, f"teachers.reasoning={other}")
    assert f"teachers.reasoning = {other}" in str(caught.value)


def test_a_teacher_of_another_family_is_refused_with_the_reason(tiny_run: TinyRun, tiny_qwen_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match=r"the teacher is a 'qwen2_5_vl' model, the student a 'internvl' one; attention maps"):
        start_trainer(tiny_run, f"teachers.reasoning={tiny_qwen_run.teacher}")


def test_unlabelled_records_of_an_untaught_capability_are_left_out(tiny_run: TinyRun) -> None:
    samples = read_training_samples(tiny_run.config(f"teachers={{planning: {tiny_run.teacher}}}"))
    assert {sample.capability for sample in samples.unlabelled} == {"planning"}
    assert {sample.capability for sample in samples.labelled} == set(CAPABILITIES)
