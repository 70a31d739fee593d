"""One optimizer step, from weighted gradients to weights that move, and everything that stops it.

Models of 32 and 48 channels, six pictures, one thread; every trainer here is a real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_run import NO_TEACHERS, TinyRun, frame_samples, load_pair, make_tokenizer, sharpened, start_trainer, stepped
from torch import Tensor
from transformers import InternVLForConditionalGeneration, PreTrainedModel

from drivekd.config import OptimizerConfig
from drivekd.data.batch import Batch
from drivekd.data.packs import single_packs
from drivekd.distill.rows import rows_for
from drivekd.distill.training.objectives import Objectives
from drivekd.distill.training.optimizer import learning_rate
from drivekd.distill.training.train import read_training_samples, train
from drivekd.distill.training.trainer import Trainer, resolve_device
from drivekd.errors import ConfigError, TrainingError
from drivekd.files import checkpoint_digest, file_digest
from drivekd.models import language_model, load_model
from drivekd.models.probe import CAPTURE_ATTENTION
from drivekd.models.tiny import TinySize, tiny_config, write_checkpoint
from drivekd.sample import CAPABILITIES

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

Start = Callable[..., Trainer]


@pytest.fixture
def start(tiny_run: TinyRun) -> Start:
    return partial(start_trainer, tiny_run)


def assert_close(found: Tensor, expected: Tensor, rtol: float) -> None:
    """Relative error of whole vectors."""
    assert float((found - expected).norm() / expected.norm()) <= rtol


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# --- weights and projection -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), ("signals.mixing=released",), ("training.packing=frame",)], ids=lambda s: "".join(s))
def test_sum_is_the_sum_of_the_weighted_gradients(family_run: TinyRun, settings: tuple[str, ...]) -> None:
    """All records are in the step, so that the batch by hand holds the same ones."""
    weighted = ("signals.weighting=static", "signals.planning.weight=250", "signals.reasoning.weight=40")
    every = ("training.batch_size=18", "data.unlabelled=[]", "training.unlabelled_batch_size=0", *settings)
    samples = read_training_samples(family_run.config(*every)).labelled
    num_packs = 12 if "training.packing=frame" in settings else 18  # a frame's perception and reasoning share a pack
    sized = ("projection.method=sum", *weighted, *every, f"training.batch_size={num_packs}")
    _, found = stepped(start_trainer(family_run, *sized))
    _, gradients = load_pair(family_run, *every).gradients([single_packs(samples)])  # all capabilities in one batch
    scale = {"ce": 1.0, "perception": 1.0, "reasoning": 40.0, "planning": 250.0}
    expected = torch.stack([scale[name] * gradient for name, gradient in gradients.items()]).sum(0)
    assert_close(found, expected, rtol=1e-4)  # fp32; attention gradients are 1e-3 of CE's


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
        found = record["gradient_norm"][name] * record["weight"][name]
        assert found == pytest.approx(weight * float(ce.norm()), rel=1e-4)  # fp32


def test_static_weights_multiply_the_loss(start: Start) -> None:
    record = start("signals.weighting=static", "signals.reasoning.weight=1500").step()
    assert record["weight"] == {"ce": 1.0, "perception": 1.0, "reasoning": 1500.0, "planning": 1.0}


def test_dynamic_weights_are_logged_as_used_and_move(start: Start) -> None:
    """Defect 5 of docs/method.md, "What the released code gets wrong": the released code logs stale weights."""
    settings = ("signals.weighting=dynamic", "signals.planning.weight=200", "signals.dynamic.learning_rate=0.5")
    trainer = start(*settings)
    first, second = trainer.step(), trainer.step()
    assert first["weight"] == pytest.approx({"ce": 1.0, "perception": 1.0, "reasoning": 1.0, "planning": 200.0})
    assert second["weight"] != pytest.approx(first["weight"])
    assert sum(second["weight"].values()) == pytest.approx(203.0)  # rescaled to the static sum


def test_the_record_says_what_agp_saw(family_run: TinyRun) -> None:
    every = ("training.batch_size=18", "data.unlabelled=[]", "training.unlabelled_batch_size=0", "signals.weighting=static")
    record, update = stepped(start_trainer(family_run, "projection.method=sum", *every))
    samples = read_training_samples(family_run.config(*every)).labelled
    _, gradients = load_pair(family_run, *every).gradients([single_packs(samples)])
    for name in ("ce", *CAPABILITIES):
        assert record["gradient_norm"][name] == pytest.approx(float(gradients[name].norm()), rel=1e-4)  # fp32
    for name in CAPABILITIES:
        cosine = float(F.cosine_similarity(gradients["ce"].double(), gradients[name].double(), dim=0))
        assert record["conflict_cosine"][name] == pytest.approx(cosine, abs=1e-4)
    assert record["update_norm"] == pytest.approx(float(update.norm()), rel=1e-5)


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
    """Defect 1 of docs/method.md: at 5e-5, steps are below bf16's spacing wherever |w| >= 1/64."""
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


def test_warm_up_and_cosine_by_hand() -> None:
    settings = OptimizerConfig(warmup_steps=2, schedule="cosine", learning_rate=1.0)
    found = [learning_rate(settings, step, 6) for step in range(6)]
    expected = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4))]
    assert found == pytest.approx(expected, rel=1e-12)
    assert learning_rate(OptimizerConfig(learning_rate=0.1), 5, 6) == 0.1


def test_the_rate_of_the_record_is_the_rate_of_the_step(start: Start) -> None:
    trainer = start("optimizer.warmup_steps=4", "optimizer.learning_rate=4e-3")
    rates = [trainer.step()["learning_rate"] for _ in range(2)]
    assert rates == pytest.approx([1e-3, 2e-3])
    assert trainer.optimizer.param_groups[0]["lr"] == rates[1]


def test_clipping_bounds_the_update_and_reports_what_it_was(start: Start) -> None:
    free, free_update = stepped(start())
    norm = float(free_update.norm())
    record, found = stepped(start(f"optimizer.clip_norm={norm / 10}"))
    assert record["update_norm"] == pytest.approx(norm, rel=1e-4) == free["update_norm"]
    assert_close(found, free_update / 10, rtol=1e-4)  # torch divides by norm + 1e-6


def test_steps_are_a_function_of_seed_and_step(start: Start) -> None:
    """Own anchors: stage 2 then has conflicts to settle, in an order that must be the same again."""
    updates, fired = [], 0
    for seed in (3, 3, 4):
        trainer = start("projection.anchor=own", f"seed={seed}")
        for _ in range(3):
            torch.rand(7)  # someone else's draws from torch's global generator must not matter
            record, update = stepped(trainer)
            fired += record["stage_2_fired"]
        updates.append(update)
    assert fired > 0
    assert torch.equal(updates[0], updates[1])
    assert not torch.equal(updates[0], updates[2])


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


@contextmanager
def disturbed(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[int, Tensor]], dict[int, Tensor]]) -> Iterator[None]:
    """Every micro-batch's losses go through `change` before anyone sees them."""
    honest = Objectives.losses

    @contextmanager
    def losses(self: Objectives, batch: Batch, size: Any) -> Iterator[dict[int, Tensor]]:
        with honest(self, batch, size) as found:
            yield change(found)

    with monkeypatch.context() as patch:
        patch.setattr(Objectives, "losses", losses)
        yield


def assert_unmoved(trainer: Trainer, before: dict[str, Tensor], steps_done: int) -> None:
    assert trainer.steps_done == steps_done
    after = trainer.student.state_dict()
    assert all(torch.equal(value.nan_to_num(), after[name].nan_to_num()) for name, value in before.items())


def test_a_nan_loss_stops_before_the_update_and_is_named(start: Start) -> None:
    """Defect 4 of docs/method.md, "What the released code gets wrong": nothing is skipped and no 0.0 is logged."""
    trainer = start()
    trainer.step()
    language_model(trainer.student).norm.weight.data[0] = float("nan")
    before = weights(trainer.student)
    with pytest.raises(TrainingError, match=r"step 2: the loss term 'ce' is nan; training stopped before the update"):
        trainer.step()
    assert_unmoved(trainer, before, 1)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_teacher_that_says_nan_is_named(start: Start, monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    trainer = start()
    before = weights(trainer.student)
    row = rows_for(trainer.config).names.index(capability)
    broken = disturbed(monkeypatch, lambda losses: {n: loss * (math.nan if n == row else 1.0) for n, loss in losses.items()})
    with broken, pytest.raises(TrainingError, match=f"step 1: the loss term '{capability}' is nan"):
        trainer.step()
    assert_unmoved(trainer, before, 0)
    assert trainer.step()["loss"][capability] > 0  # nothing of the broken step is left


def test_a_gradient_that_is_not_finite_stops_before_the_update(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss can have an infinite gradient; AdamW would turn every weight into NaN."""
    trainer = start()
    before = weights(trainer.student)
    steep = disturbed(monkeypatch, lambda losses: {row: loss + (loss - loss.detach()).sqrt() for row, loss in losses.items()})
    with steep, pytest.raises(TrainingError, match=r"step 1: the gradient of the loss term 'ce' has the norm (nan|inf)"):
        trainer.step()
    assert_unmoved(trainer, before, 0)


def test_out_of_memory_in_a_micro_batch_is_no_smaller_step(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 4: the released code drops the window and goes on. Advice on what to lower comes from `train`."""
    trainer = start()
    before = weights(trainer.student)
    calls: list[int] = []

    def full(losses: dict[int, Tensor]) -> dict[int, Tensor]:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return losses

    with disturbed(monkeypatch, full), pytest.raises((torch.OutOfMemoryError, TrainingError)):
        trainer.step()
    assert len(calls) == 2
    assert_unmoved(trainer, before, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds no CUDA device; use cpu or auto"):
        resolve_device("cuda:1")


# --- what a run leaves alone ----------------------------------------------------------------------------------------


def test_the_probe_is_off_outside_of_its_block(start: Start) -> None:
    """Validation and the answers of a capability without teacher pay nothing for it."""
    trainer = start()
    layers = language_model(trainer.student).layers
    before = [sorted(vars(layer.self_attn)) for layer in layers]
    trainer.step()
    assert [sorted(vars(layer.self_attn)) for layer in layers] == before
    assert trainer.student.config.text_config._attn_implementation == CAPTURE_ATTENTION


def test_a_run_writes_into_no_model_folder(family_run: TinyRun, tmp_path: Path) -> None:
    """Defect 6: the released code edits files of the user's model cache. It also wants CUDA; here is none."""
    folders = (family_run.student, family_run.teacher)

    def state() -> dict[str, Any]:
        files = {str(path): (file_digest(path), path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*")}
        return files | {str(folder): checkpoint_digest(folder) for folder in folders}

    before = state()
    assert len(before) > 10
    settings = (f"cache.directory={tmp_path / 'cache'}", "training.steps=2", "student.train=[language_model]")
    train(family_run.config(*settings), tmp_path / "out")
    assert state() == before


def test_packed_steps_count_packs_and_report_samples(family_run: TinyRun) -> None:
    samples = frame_samples(family_run, [3, 2, 4], labelled=1.0)
    settings = ("training.packing=frame", "data.unlabelled=[]", "training.unlabelled_batch_size=0", "training.batch_size=3")
    record = start_trainer(family_run, *settings, labelled=samples).step()
    assert record["samples"] == 9
    alone = start_trainer(family_run, *settings[1:], "training.batch_size=9", labelled=samples).step()
    assert record["tokens"] < alone["tokens"]  # six prefixes less
    assert record["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # fp32
