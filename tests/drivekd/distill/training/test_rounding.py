"""`student.quantization`: training computes with the weights that the bundle will have, and what it leaves says so.

The bundle's side is done by hand here, on the files of final/: each layer's weight becomes `Quantized(...).dequantized()` of its
rounded values, the embedding's rows `quantized` ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import NO_TEACHERS, TinyRun, frame_samples, start_trainer, stepped
from torch import Tensor, nn

from drivekd.config import RunConfig
from drivekd.distill.teachers.features import vision_digest
from drivekd.distill.training.checkpoint import write_student
from drivekd.distill.training.objectives import StepSize
from drivekd.distill.training.rounding import Rounding, first_scales
from drivekd.distill.training.train import train
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import CheckpointError, ConfigError
from drivekd.log import read_metrics
from drivekd.models import encode_images, load_model, modules_of
from drivekd.models.decoder import run_decoder
from drivekd.quantization.form import Quantized, WeightForm, in_blocks, quantized, rounded
from drivekd.quantization.linears import linear_layers
from drivekd.quantization.scales import SCALES_FILE, read_scales, write_scales

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

INT4 = "student.quantization={precision: int4}"
LORA = ("student.train=[language_model]", "student.lora={rank: 4, alpha: 8}")
LANGUAGE = "student.train=[language_model]"
# What a run may train, and how: each must leave the very weights that it computed with.
SETTINGS: dict[str, tuple[str, ...]] = {
    "all": (INT4,),
    "int8": ("student.quantization={precision: int8}",),
    "frozen tower": (INT4, LANGUAGE),
    "frozen language model": (INT4, "student.train=[projector]"),
    "adapters": (INT4, *LORA),
    "adapters and projector": (INT4, LORA[1], "student.train=[projector, language_model]", "student.lora.targets=[q_proj]"),
    "mixed": ("student.quantization={exclude: ['layers.1.*', 'vision.*'], int8: [lm_head, 'layers.0.mlp.*']}",),
    "float head": ("student.quantization={exclude: [lm_head]}",),
    "last steps": ("student.quantization={last_steps: 4}",),
}
Start = Callable[..., Trainer]


@pytest.fixture
def start(family_run: TinyRun) -> Start:
    return partial(start_trainer, family_run)


def logits(model: Any, trainer: Trainer) -> Tensor:
    """Of some samples' tokens, [B, S, V]. The trainer only makes the batch."""
    batch = trainer.collate([(sample,) for sample in trainer.samples.labelled[:6]])
    paths = list(dict.fromkeys(path for images in batch.images for path in images))
    with torch.no_grad():
        found = dict(zip(paths, encode_images(model, trainer.collate.pixel_values(paths, "test")), strict=True))
        features = torch.cat([found[path] for images in batch.images for path in images])
        hidden = run_decoder(model, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)
        result: Tensor = model.lm_head(hidden)
    return result


def exported(final: Path, block: int = 32) -> Any:
    """The model of final/ with the weights that its bundle has."""
    model: Any = load_model(final)
    scales, forms = read_scales(final)
    layers: dict[str, Any] = linear_layers(model)
    if model.lm_head.weight is model.get_input_embeddings().weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    for name, form in forms.items():
        weight = layers[name].weight.detach()
        values = rounded(weight.flatten(1), scales[name], form)
        layers[name].weight.data = Quantized(values, scales[name], form).dequantized().view_as(weight)
    table = model.get_input_embeddings().weight
    table.data = quantized(table.detach(), WeightForm(8, block), half=True).dequantized()
    return model


def saved(trainer: Trainer, folder: Path) -> Path:
    folder.mkdir()
    write_student(folder, trainer.saved_student())
    return folder


def trained(trainer: Trainer, steps: int = 3) -> Trainer:
    for _ in range(steps):
        trainer.step()
    return trainer


def master(trainer: Trainer, layer: str) -> Any:
    return linear_layers(trainer.student)[layer]


# --- what is computed is what is exported -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_the_exported_weights_answer_as_the_trained_ones(start: Start, tmp_path: Path, name: str) -> None:
    trainer = trained(start(*SETTINGS[name], "optimizer.learning_rate=1e-2"))
    final = saved(trainer, tmp_path / "final")
    expected = logits(trainer.student, trainer)
    assert torch.allclose(logits(exported(final), trainer), expected, rtol=0, atol=1e-5)  # fp32, logits of size 1
    assert float((logits(load_model(final), trainer) - expected).abs().max()) > 1e-3, "nothing was rounded"


@pytest.mark.parametrize("name", ["all", "adapters", "frozen language model"])
def test_every_rounded_weight_is_the_same_to_the_bit(start: Start, tmp_path: Path, name: str) -> None:
    trainer = trained(start(*SETTINGS[name], "optimizer.learning_rate=1e-2"))
    model = exported(saved(trainer, tmp_path / "final"))
    assert trainer.rounding is not None
    layers, theirs = linear_layers(trainer.student), linear_layers(model)
    live = trainer.rounding._layers
    assert live.keys() <= trainer.rounding.forms.keys() == theirs.keys()
    for layer, module in theirs.items():
        computed = live[layer]._weight() if layer in live else layers[layer].weight
        assert torch.equal(computed.detach().flatten(), module.weight.detach().flatten()), layer
    ids = torch.arange(50)[None]
    assert torch.equal(trainer.student.get_input_embeddings()(ids), model.get_input_embeddings()(ids))


@pytest.mark.parametrize("name", ["all", "frozen language model", "adapters"])
def test_a_tied_head_stays_tied_in_the_files(tiny_run: TinyRun, tmp_path: Path, name: str) -> None:
    final = saved(start_trainer(tiny_run, *SETTINGS[name]), tmp_path / "final")
    assert "lm_head.weight" not in load_file(final / "model.safetensors")
    assert not any("log_scales" in key or "lora" in key for key in load_file(final / "model.safetensors"))
    assert "lm_head" in read_scales(final)[1]


def test_a_mixed_run_has_the_forms_that_it_asked_for(tiny_run: TinyRun, tmp_path: Path) -> None:
    _, forms = read_scales(saved(start_trainer(tiny_run, *SETTINGS["mixed"]), tmp_path / "final"))
    assert not any(name.startswith(("layers.1.", "vision.")) for name in forms)
    eight = {name for name, form in forms.items() if form == WeightForm(8, 32)}
    mlp = {f"layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert eight == {"lm_head", "projector.linear_1", "projector.linear_2"} | mlp
    assert {form for name, form in forms.items() if name not in eight} == {WeightForm(4, 32)}


def test_final_holds_the_masters(start: Start, tmp_path: Path) -> None:
    """Not rounded to the grid: training may go on from them."""
    trainer = trained(start(INT4))
    final = dict(load_model(saved(trainer, tmp_path / "final")).named_parameters())
    for parameter, name in trainer.names.items():
        if not name.endswith("log_scales"):
            assert torch.equal(final[name], parameter), name
    weight = final["model.language_model.layers.0.mlp.up_proj.weight"]
    assert len(weight[0, :32].unique()) > 16


def test_validation_and_bf16_round_as_well(tiny_run: TinyRun) -> None:
    plain, whole = start_trainer(tiny_run), start_trainer(tiny_run, INT4)
    half = start_trainer(tiny_run, INT4, "training.precision=bf16")
    found = [trainer.validate() for trainer in (plain, whole, half)]
    assert all(loss is not None for loss in found)
    assert found[0] != pytest.approx(found[1], rel=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-2)  # bf16 has 8 bits


# --- gradients --------------------------------------------------------------------------------------------------------


def ce_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """By name, of cross-entropy on some samples."""
    batch = trainer.collate([(sample,) for sample in trainer.samples.labelled[:4]])
    with trainer.objectives.losses(batch, StepSize(0, 4, 4)) as losses:
        losses[0].backward()
    found = {name: parameter.grad for parameter, name in trainer.names.items() if parameter.grad is not None}
    for parameter in trainer.names:
        parameter.grad = None
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def test_gradients_are_those_of_a_plain_model_with_the_rounded_weights(tiny_run: TinyRun, tmp_path: Path) -> None:
    """At the start no weight is beyond its range: the identity passes, and a scale gets g (w' - w) over its block."""
    trainer = start_trainer(tiny_run, INT4)
    found = ce_gradients(trainer)
    plain = start_trainer(tiny_run)
    masters = {name: parameter.detach().clone() for parameter, name in plain.names.items()}
    model = exported(saved(trainer, tmp_path / "final"))
    plain.student.lm_head.weight = nn.Parameter(plain.student.lm_head.weight.detach().clone())
    plain.names[plain.student.lm_head.weight] = "lm_head.weight"
    with torch.no_grad():
        for name, parameter in plain.student.named_parameters():
            parameter.copy_(dict(model.named_parameters())[name])
    expected = ce_gradients(plain)
    embedding, head = "model.language_model.embed_tokens.weight", "lm_head.weight"
    layer = "model.language_model.layers.1.mlp.down_proj"
    assert torch.allclose(found[embedding], expected[embedding] + expected[head], rtol=1e-4, atol=1e-7)
    assert torch.allclose(found[f"{layer}.weight"], expected[f"{layer}.weight"], rtol=1e-4, atol=1e-7)
    change = dict(model.named_parameters())[f"{layer}.weight"] - masters[f"{layer}.weight"]
    by_scale = in_blocks(expected[f"{layer}.weight"] * change.detach(), 32).sum(2)
    assert float(by_scale.abs().max()) > 1e-5
    assert torch.allclose(found[f"{layer}.log_scales"], by_scale, rtol=1e-3, atol=1e-7)
    by_head = in_blocks(expected[head] * (dict(model.named_parameters())[head].detach() - masters[embedding]), 32).sum(2)
    assert torch.allclose(found["lm_head.log_scales"], by_head, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("more", [(), LORA, ("student.gradient_checkpointing=true",)])
def test_rounding_once_a_step_changes_no_bit(start: Start, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    record, update = stepped(trained(start(INT4, *more), 1))

    @contextmanager
    def never(self: Rounding) -> Iterator[None]:
        yield

    monkeypatch.setattr(Rounding, "held", never)
    again, found = stepped(trained(start(INT4, *more), 1))
    assert record["loss"] == again["loss"]
    assert torch.equal(found, update)


def test_a_step_rounds_each_weight_once_and_forgets_it(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start_trainer(tiny_run, INT4)
    assert trainer.rounding is not None
    import drivekd.distill.training.rounding as module

    calls: list[int] = []
    honest = module.known
    monkeypatch.setattr(module, "known", lambda *of: calls.append(1) or honest(*of))
    trainer.step()
    assert len(calls) == len(trainer.rounding.forms)
    assert all(layer.known is None for layer in trainer.rounding._layers.values())
    trained_bytes = sum(4 * layer.linear.weight.numel() for layer in trainer.rounding._layers.values())
    assert trainer.rounding.most_bytes == trained_bytes
    before = trainer.validate()
    trainer.step()
    assert trainer.validate() != before


def test_checkpointed_layers_and_packs_give_the_same_step(tiny_run: TinyRun) -> None:
    record, update = stepped(start_trainer(tiny_run, INT4))
    again, found = stepped(start_trainer(tiny_run, INT4, "student.gradient_checkpointing=true"))
    assert again["loss"] == pytest.approx(record["loss"], rel=1e-6)
    assert torch.allclose(found, update, rtol=1e-4, atol=1e-7)
    samples = frame_samples(tiny_run, [3, 2, 4], labelled=1.0)
    settings = (INT4, "data.unlabelled=[]", "training.unlabelled_batch_size=0")
    packed = start_trainer(tiny_run, *settings, "training.packing=frame", "training.batch_size=3", labelled=samples).step()
    alone = start_trainer(tiny_run, *settings, "training.batch_size=9", labelled=samples).step()
    assert packed["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # fp32


def test_signals_compare_maps_of_rounded_projections(tiny_run: TinyRun) -> None:
    """Perception's signal is layer 0's q and k alone: it must differ, and reach their scales alone."""
    trainer, plain = start_trainer(tiny_run, INT4, LANGUAGE), start_trainer(tiny_run, LANGUAGE)
    losses = []
    for one in (trainer, plain):
        batch = one.collate([(sample,) for sample in one.samples.labelled[:2]])
        with one.objectives.losses(batch, StepSize(0, 2, 2)) as found:
            losses.append(float(found[one.rows.followers["perception"]].detach()))
            found[one.rows.followers["perception"]].backward()
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    reached = {name for parameter, name in trainer.names.items() if parameter.grad is not None and "log_scales" in name}
    assert reached == {f"model.language_model.layers.0.self_attn.{name}_proj.log_scales" for name in "qk"}


def test_scales_train_and_do_not_decay(tiny_run: TinyRun) -> None:
    trainer = start_trainer(tiny_run, INT4, "optimizer.weight_decay=0.1", "optimizer.learning_rate=1e-2")
    before = {name: parameter.detach().clone() for parameter, name in trainer.names.items() if name.endswith("log_scales")}
    trained(trainer)
    assert trainer.rounding is not None and before.keys() >= {"lm_head.log_scales"}
    assert len(before) == len(trainer.rounding.forms)
    for parameter, name in trainer.names.items():
        if name in before:
            assert not torch.equal(parameter, before[name]), name
            assert float((parameter - before[name]).detach().abs().max()) < 0.1, "Adam moves a logarithm by its rate"
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {decays[id(p)] for p, name in trainer.names.items() if name in before} == {0.0}
    assert {decays[id(p)] for p, name in trainer.names.items() if name not in before} == {0.1}


def test_learning_through_rounding_lowers_the_loss_that_the_bundle_has(tiny_run: TinyRun, tmp_path: Path) -> None:
    fast = ("training.batch_size=18", "training.micro_batch_size=6", "optimizer.learning_rate=1e-2", *NO_TEACHERS)
    trainer = start_trainer(tiny_run, INT4, *fast)
    first = trainer.validate()
    last = trained(trainer, 40).validate()
    assert first is not None and last is not None and last < first / 6  # as without rounding, tests of the trainer


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_what_is_rounded_is_the_sum_of_base_and_adapter(tiny_run: TinyRun) -> None:
    trainer = trained(start_trainer(tiny_run, INT4, *LORA, "optimizer.learning_rate=1e-2"))
    assert trainer.rounding is not None
    layer = trainer.rounding._layers["layers.1.self_attn.v_proj"]
    host = layer.host
    summed = host.base_layer.weight + 2.0 * (host.lora_B["default"].weight @ host.lora_A["default"].weight)
    assert float((summed - host.base_layer.weight).detach().abs().max()) > 1e-2, "adapters have learnt"
    scales = layer.log_scales.detach().exp().half().float()
    assert torch.equal(layer._weight(), Quantized(rounded(summed, scales, layer.form), scales, layer.form).dequantized())
    moved = {name.rpartition(".")[0].rpartition(".")[2] for name in trainer.names.values()}
    assert moved == {"default", *(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))}


def test_bf16_keeps_the_base_of_adapters_in_fp32(tiny_run: TinyRun) -> None:
    trainer = start_trainer(tiny_run, INT4, *LORA, "student.lora.targets=[q_proj]", "training.precision=bf16")
    dtypes = {
        name.rpartition(".layers.1.")[2]: parameter.dtype
        for name, parameter in trainer.student.named_parameters()
        if (".layers.1." in name and name.endswith("proj.base_layer.weight")) or ".layers.1.mlp.up_proj.weight" in name
    }
    assert dtypes == {"self_attn.q_proj.base_layer.weight": torch.float32, "mlp.up_proj.weight": torch.bfloat16}
    assert torch.isfinite(torch.tensor(trainer.step()["loss"]["ce"]))


def test_dropout_is_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(
        ConfigError, match=r"student\.lora\.dropout = 0\.1 with student\.quantization: .*use student\.lora\.dropout = 0"
    ):
        tiny_run.config(INT4, *LORA, "student.lora.dropout=0.1")


# --- frozen towers and their features ---------------------------------------------------------------------------------


def test_features_of_a_rounded_tower_are_kept_apart(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Student, and a teacher of the very same checkpoint: on disk a store each, and a run without it reads the other."""
    same = (
        LANGUAGE,
        f"teachers={{perception: {tiny_run.student}}}",
        f"cache.directory={tmp_path / 'cache'}",
        "cache.signals=false",
    )

    def stores() -> set[str]:
        return {path.name for path in (tmp_path / "cache").glob("vision-*")}

    def features(trainer: Trainer) -> Tensor:
        return trainer.features(trainer.collate([(trainer.samples.labelled[0],)]))

    plain = trained(start_trainer(tiny_run, *same), 1)
    assert plain.teachers is not None
    assert plain.teachers.by_capability["perception"].features is plain.features
    plain.caches.close()
    assert len(stores()) == 1
    found = trained(start_trainer(tiny_run, *same, "student.quantization={precision: int8}"), 1)
    assert found.teachers is not None
    teacher = found.teachers.by_capability["perception"]
    assert torch.equal(teacher.features(found.collate([(found.samples.labelled[0],)])), features(plain))
    assert not torch.equal(features(found), features(plain))
    found.caches.close()
    assert len(stores()) == 2
    again = start_trainer(tiny_run, *same)
    assert torch.equal(features(again), features(plain))
    rounded_again = start_trainer(tiny_run, *same, "student.quantization={precision: int8}")
    assert torch.equal(features(rounded_again), features(found))
    tower = modules_of(rounded_again.student, "vision_encoder")
    assert tower and vision_digest(rounded_again.student) != vision_digest(again.student)


# --- the last steps ---------------------------------------------------------------------------------------------------


def test_the_first_steps_are_those_of_a_run_without_rounding(tiny_run: TinyRun) -> None:
    late, plain = start_trainer(tiny_run, "student.quantization={last_steps: 4}"), start_trainer(tiny_run)
    for _ in range(2):
        assert late.step()["loss"] == plain.step()["loss"]
    assert late.validate() == plain.validate()
    weights = master(late, "layers.0.mlp.up_proj").weight.detach().clone()
    assert torch.equal(weights, master(plain, "layers.0.mlp.up_proj").weight)
    assert late.rounding is not None and late.begins_rounding and not late.rounding.active
    assert late.step()["loss"] != plain.step()["loss"]
    assert late.rounding.active
    moved = master(late, "layers.0.mlp.up_proj").log_scales - first_scales(weights, WeightForm(4, 32)).log()
    rate = late.config.optimizer.learning_rate
    # they begin at the weights as they are, and with fresh moments: AdamW's first step is its rate
    assert float(moved.abs().max()) == pytest.approx(rate, rel=1e-3)


def test_before_the_last_steps_a_checkpoint_tells_of_no_rounding(tiny_run: TinyRun, tmp_path: Path) -> None:
    trainer = trained(start_trainer(tiny_run, "student.quantization={last_steps: 4}"), 2)
    assert read_scales(saved(trainer, tmp_path / "early")) == ({}, {})
    assert len(read_scales(saved(trained(trainer, 1), tmp_path / "late"))[1]) == 30


def test_best_is_sought_anew_among_rounded_students(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A rate at which every step is worse than the one before: the first rounded one is the best then."""
    settings = ("student.quantization={last_steps: 3}", "training.validate_every_steps=1", "optimizer.learning_rate=0.3")
    train(tiny_run.config(*settings), tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["best_validation_step"] for record in records[:3]] != [
        record["best_validation_step"] for record in records[3:]
    ]
    assert records[3]["best_validation_step"] == 4
    assert len(read_scales(tmp_path / "run" / "best")[1]) == 30


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("student.quantization={last_steps: 7}",), "last_steps is 7, but training.steps is 6"),
        (
            ("student.quantization={last_steps: 3}", "training.early_stop_patience=2", "training.validate_every_steps=1"),
            "may never come to its last steps",
        ),
        (("student.quantization={block: 48}",), "quantization.block = 48"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_run: TinyRun, settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_run.config(*settings)


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            "{exclude: [layers.0.self_attn.q_proj]}",
            r"quantization\.exclude: 'layers.0.self_attn.q_proj' matches no MatMul.* "
            r"Did you mean layers.0.self_attn.qkv_proj",
        ),
        ("{int8: [lm_heat]}", r"quantization\.int8: 'lm_heat' .*Did you mean lm_head\?"),
        ("{exclude: ['layers.9.*']}", r"'layers.9.\*' matches no MatMul"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(tiny_run: TinyRun, settings: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        start_trainer(tiny_run, f"student.quantization={settings}")


# --- scales that a checkpoint brings ----------------------------------------------------------------------------------


@pytest.fixture
def prepared(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A student with scales of its own, a tenth larger than by rounding to the nearest."""
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_run.student, folder)
    trainer = start_trainer(tiny_run, INT4)
    student = trainer.saved_student()
    write_scales(folder, {name: (scales * 1.1).half().float() for name, scales in student.scales.items()}, student.forms)
    return folder


@pytest.mark.parametrize("more", [(), (LANGUAGE,), LORA])
def test_training_starts_from_given_scales(tiny_run: TinyRun, prepared: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    trainer = start_trainer(tiny_run, f"student.checkpoint={prepared}", INT4, *more)
    given, forms = read_scales(prepared)
    found = trainer.saved_student()
    assert found.scales.keys() == given.keys()
    assert all(torch.equal(found.scales[name], given[name]) for name in given)
    assert torch.allclose(logits(exported(prepared), trainer), logits(trainer.student, trainer), rtol=0, atol=1e-5)
    assert forms == found.forms


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{precision: int8}", r"asks for int8 in blocks of 32 for layers\.0\.mlp\.down_proj, but .*has int4 in blocks of 32"),
        ("{exclude: ['layers.1.*']}", r"asks for float for layers\.1\.mlp\.down_proj, but .*has int4 in blocks of 32"),
        ("{block: 64}", r"asks for int4 in blocks of 64 for layers\.0\.mlp\.down_proj, but .*has int4 in blocks of 32"),
    ],
)
def test_scales_of_other_forms_are_refused(tiny_run: TinyRun, prepared: Path, settings: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        start_trainer(tiny_run, f"student.checkpoint={prepared}", f"student.quantization={settings}")


def test_scales_of_another_shape_are_refused(tiny_run: TinyRun, prepared: Path) -> None:
    scales, forms = read_scales(prepared)
    write_scales(prepared, scales | {"lm_head": scales["lm_head"][:-1]}, forms)
    with pytest.raises(CheckpointError, match=r"weight_scales\.safetensors: scales of lm_head are .*, its weight needs"):
        start_trainer(tiny_run, f"student.checkpoint={prepared}", INT4)


def test_a_rounded_student_may_be_trained_on_without_rounding(tiny_run: TinyRun, prepared: Path, tmp_path: Path) -> None:
    trainer = trained(start_trainer(tiny_run, f"student.checkpoint={prepared}", *NO_TEACHERS), 1)
    assert trainer.rounding is None
    assert not (saved(trainer, tmp_path / "final") / SCALES_FILE).exists()


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all", "adapters", "last steps"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_resuming_is_bit_equal(tiny_run: TinyRun, tmp_path: Path, name: str, cut: int) -> None:
    """Of the last four of six steps: before the first one, exactly there, and after it."""
    config: RunConfig = tiny_run.config(*SETTINGS[name], "training.checkpoint_every_steps=1", "training.keep_checkpoints=9")
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "final")
    for step in range(cut + 1, 7):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step}")
    train(config, tmp_path / "cut", resume=True)
    for file in ("final/model.safetensors", f"final/{SCALES_FILE}", "checkpoints/step-6/trained.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file
    losses = [[record["loss"] for record in read_metrics(tmp_path / out / "metrics.jsonl")] for out in ("whole", "cut")]
    assert losses[0] == losses[1]
