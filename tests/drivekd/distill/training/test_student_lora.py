"""Adapters in the student's language model: where they are, what they change, what is written of them.

Real peft layers in models of 32 channels. Frozen means equal to the bit; merged against adapted is fp32 rounding of one product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_run import NO_TEACHERS, TinyRun, start_trainer, stepped
from torch import Tensor, nn

from drivekd.config import LoraConfig
from drivekd.distill.training.student import add_adapters, hold_frozen_linears_in
from drivekd.distill.training.train import train
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import ConfigError
from drivekd.models import language_model, load_model, num_layers, part
from drivekd.models.decoder import run_decoder
from drivekd.models.probe import CAPTURE_ATTENTION, MapRequest, capture

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

LORA = ("student.train=[language_model]", "student.lora={rank: 4, alpha: 8}")
Start = Callable[..., Trainer]


@pytest.fixture
def start(kind_run: TinyRun) -> Start:
    return partial(start_trainer, kind_run)


def adapted(run: TinyRun, **settings: Any) -> Any:
    """The student with adapters whose B is not zero any more."""
    model = load_model(run.student, attention=CAPTURE_ATTENTION).eval()
    add_adapters(model, LoraConfig(**settings), run.student, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: Any, trainer: Trainer) -> Tensor:
    """Of all samples' tokens, [B, S, V]. The trainer only makes the batch."""
    batch = trainer.collate([(sample,) for sample in trainer.samples.labelled[:6]])
    pixels = trainer.collate.pixel_values(list(dict.fromkeys(p for images in batch.images for p in images)), "test")
    from drivekd.models import encode_images

    found = dict(zip(dict.fromkeys(p for images in batch.images for p in images), encode_images(model, pixels), strict=True))
    features = torch.cat([found[path] for images in batch.images for path in images])
    with torch.no_grad():
        hidden = run_decoder(model, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)
        result: Tensor = model.lm_head(hidden)
    return result


def trained(trainer: Trainer, steps: int = 3) -> Trainer:
    for _ in range(steps):
        trainer.step()
    return trainer


# --- where adapters are ---------------------------------------------------------------------------------------------


def test_only_the_named_layers_of_the_language_model_get_one(kind_run: TinyRun) -> None:
    model = adapted(kind_run, targets=["q_proj", "down_proj"])
    where = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    depth = num_layers(model)
    inside = {
        f"model.language_model.layers.{layer}.{name}" for layer in range(depth) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert where == inside
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{layer}.lora_{matrix}.default.weight" for layer in inside for matrix in "AB"
    }
    assert not any("lora" in name for name, _ in part(model, "vision_encoder").named_modules())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("q_pro", r"called 'q_pro'\. Did you mean q_proj"),
        ("query", r"called 'query'\. .*There are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
        ("lm_head", "called 'lm_head'"),  # tied to the embeddings in some sizes
        ("embed_tokens", "called 'embed_tokens'"),
        ("proj", r"called 'proj'\. "),  # a whole name, not its end
    ],
)
def test_an_unknown_target_is_named_with_what_is_near(tiny_run: TinyRun, target: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        adapted(tiny_run, targets=["q_proj", target])


def test_a_target_may_name_one_layer(tiny_run: TinyRun) -> None:
    model = adapted(tiny_run, targets=["layers.1.self_attn.q_proj"])
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 1


def test_adapters_start_as_nothing_and_are_drawn_from_the_seed(start: Start, kind_run: TinyRun) -> None:
    torch.manual_seed(0)
    expected_draw = torch.rand(3)
    torch.manual_seed(0)
    first, same, other = start(*LORA), start(*LORA), start(*LORA, "seed=4")
    assert torch.equal(torch.rand(3), expected_draw)  # nobody else's random numbers were used up
    plain = load_model(kind_run.student, attention=CAPTURE_ATTENTION)
    assert torch.equal(logits(first.student, first), logits(plain, first))
    values = [torch.cat([p.detach().flatten() for p in trainer.names]) for trainer in (first, same, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


# --- what they change -----------------------------------------------------------------------------------------------


def test_distilling_adapters_lowers_the_losses_and_leaves_the_base(start: Start, kind_run: TinyRun) -> None:
    weights = [f"signals.{name}.weight=1" for name in ("perception", "reasoning", "planning")]
    trainer = start(*LORA, *weights, "training.batch_size=18", "optimizer.learning_rate=1e-2")
    first = trainer.step()["loss"]
    last = trained(trainer, 12).step()["loss"]
    for name in ("ce", "reasoning"):
        assert last[name] < 0.9 * first[name], name
    base = dict(load_model(kind_run.student).named_parameters())
    frozen = {n.replace(".base_layer", ""): p for n, p in trainer.student.named_parameters() if ".lora_" not in n}
    assert frozen.keys() == base.keys()
    assert all(torch.equal(frozen[name], base[name]) for name in base)


def test_captured_attention_is_the_adapted_one(kind_run: TinyRun, start: Start) -> None:
    """Perception's signal is layer 0's q and k alone: its gradient must reach their adapters and no others."""
    trainer = start(*LORA, "student.lora.targets=[q_proj, k_proj]")
    batch = trainer.collate([(sample,) for sample in trainer.samples.labelled[:2]])
    with trainer.objectives.losses(batch, _size()) as losses:
        row = trainer.rows.followers["perception"]
        losses[row].backward()
    reached = {name for parameter, name in trainer.names.items() if parameter.grad is not None and bool(parameter.grad.any())}
    assert reached == {f"model.language_model.layers.0.self_attn.{name}_proj.lora_B.default.weight" for name in "qk"}


def _size() -> Any:
    from drivekd.distill.training.objectives import StepSize

    return StepSize(0, 2, 2)


def test_adapters_change_the_captured_map(kind_run: TinyRun) -> None:
    maps = []
    for model in (load_model(kind_run.student, attention=CAPTURE_ATTENTION), adapted(kind_run)):
        decoder: Any = language_model(model)
        embeds = torch.randn(1, 7, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), capture(decoder.layers, {0: MapRequest()}) as captured:
            decoder(inputs_embeds=embeds, use_cache=False)
        maps.append(captured.attention[0])
    assert float((maps[0] - maps[1]).abs().max()) > 1e-3


def test_other_named_parts_train_whole(tiny_run: TinyRun) -> None:
    trainer = start_trainer(tiny_run, "student.train=[projector, language_model]", "student.lora={rank: 2}")
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    trained(trainer, 2)
    moved = {name for name, value in trainer.student.state_dict().items() if not torch.equal(before[name], value)}
    assert any("multi_modal_projector" in name for name in moved)
    assert all("multi_modal_projector" in name or ".lora_" in name for name in moved)


def test_adapters_without_the_language_model_are_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match="lora adapts the language model, but student"):
        tiny_run.config("student.train=[projector]", "student.lora={}")


# --- precision ------------------------------------------------------------------------------------------------------


def test_bf16_base_weights_compute_what_fp32_ones_do(start: Start) -> None:
    """Autocast rounds them anyway: equal to the bit, at half the memory."""
    settings = (*LORA, "training.precision=bf16")
    half, full = start(*settings), start(*settings)
    linears = [module for module in language_model(half.student).modules() if isinstance(module, nn.Linear)]
    dtypes = {(p.requires_grad, p.dtype) for module in linears for p in module.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    for (name, mine), (_, theirs) in zip(full.student.named_parameters(), load_full(full), strict=True):
        if mine.dtype != torch.float32:
            mine.data = theirs.data.clone()
        assert mine.dtype == torch.float32, name
    half_record, half_update = stepped(half)
    full_record, full_update = stepped(full)
    assert half_record["loss"] == full_record["loss"]
    assert torch.equal(half_update, full_update)


def load_full(trainer: Trainer) -> list[tuple[str, nn.Parameter]]:
    """The student's parameters before anything was rounded, in order."""
    config = trainer.config.student
    model = load_model(config.checkpoint)
    assert config.lora is not None
    add_adapters(model, config.lora, config.checkpoint, seed=trainer.config.seed)
    return list(model.named_parameters())


def test_only_frozen_linear_layers_are_held_in_bf16(tiny_run: TinyRun) -> None:
    model = adapted(tiny_run)
    hold_frozen_linears_in(model, torch.bfloat16)
    rounded = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert all("language_model" in name and ".base_layer." in name for name in rounded)
    assert {name for name, _ in model.named_parameters() if ".base_layer." in name} == rounded


# --- dropout --------------------------------------------------------------------------------------------------------


def test_dropout_is_a_function_of_seed_and_step(start: Start) -> None:
    settings = (*LORA, "student.lora.dropout=0.3")
    updates = []
    for seed, draws in ((3, 0), (3, 5), (4, 0)):
        trainer = start(*settings, f"seed={seed}")
        for parameter, name in trainer.names.items():
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.05)  # else what is dropped is multiplied by zero
        torch.rand(draws)  # somebody else's
        updates.append(stepped(trainer)[1])
    assert torch.equal(updates[0], updates[1])
    assert not torch.equal(updates[0], updates[2])
    again, _ = (stepped(trainer) for _ in range(2))
    assert again[0]["step"] == 2


def test_validation_drops_nothing(start: Start) -> None:
    trainer = trained(start(*LORA, "student.lora.dropout=0.5"), 2)
    assert trainer.validate() == trainer.validate()


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora_overrides() -> tuple[str, ...]:
    return (*LORA, "student.lora.dropout=0.1", "training.steps=4", "training.batch_size=3", "training.micro_batch_size=2")


def test_final_is_merged_and_its_adapter_says_the_same(
    kind_run: TinyRun, lora_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    summary = train(kind_run.config(*lora_overrides), tmp_path / "run")
    trainer = start_trainer(kind_run, *lora_overrides)
    merged = load_model(summary.final)
    base = load_model(kind_run.student)
    expected = logits(merged, trainer)
    assert float((expected - logits(base, trainer)).abs().max()) > 1e-2  # it learnt something
    adapted = PeftModel.from_pretrained(base, str(summary.final / "adapter")).eval()
    assert torch.allclose(logits(adapted.base_model.model, trainer), expected, rtol=0, atol=1e-5)  # logits of size 1 in fp32
    assert sorted(path.name for path in (summary.final / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "contract.json",
        "data_traces.safetensors",
    ]
    assert not any("lora" in name for name in load_file(summary.final / "model.safetensors"))
    theirs = adapted.merge_and_unload().state_dict()
    assert all(torch.allclose(theirs[name], value, rtol=1e-6, atol=1e-7) for name, value in merged.state_dict().items())


def test_checkpoints_hold_what_trains_alone(tiny_run: TinyRun, lora_overrides: tuple[str, ...], tmp_path: Path) -> None:
    train(tiny_run.config(*lora_overrides), tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step-4"
    promises = ["contract.json", "data_traces.safetensors"]
    ours = [*promises, "optimizer.safetensors", "trained.safetensors", "training_state.json"]
    assert sorted(path.name for path in step.iterdir()) == ours
    assert all(".lora_" in name for name in load_file(step / "trained.safetensors"))


def test_resuming_adapters_is_bit_equal(tiny_run: TinyRun, lora_overrides: tuple[str, ...], tmp_path: Path) -> None:
    import shutil

    config = tiny_run.config(*lora_overrides, "training.checkpoint_every_steps=1")
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "final")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-4")
    train(config, tmp_path / "cut", resume=True)
    for name in (
        "final/model.safetensors",
        "final/adapter/adapter_model.safetensors",
        "checkpoints/step-4/optimizer.safetensors",
    ):
        expected, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def test_a_capability_teacher_is_made_with_adapters_and_teaches(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The same verb without teachers, on one capability; what it leaves is a teacher."""
    settings = (*NO_TEACHERS, *LORA, "data.capabilities=[perception]", "training.steps=2")
    made = train(tiny_run.config(f"student.checkpoint={tiny_run.teacher}", *settings), tmp_path / "teacher")
    assert set(made.loss) == {"ce"}
    only = (f"teachers={{perception: {made.final}}}", "data.capabilities=[perception]", "training.steps=1")
    assert set(train(tiny_run.config(*only), tmp_path / "student").loss) == {"ce", "perception"}


def test_an_adapter_that_is_not_everything_is_not_written(tiny_run: TinyRun, tmp_path: Path) -> None:
    settings = ("student.train=[projector, language_model]", "student.lora={rank: 2}", "training.steps=1", *NO_TEACHERS)
    summary = train(tiny_run.config(*settings), tmp_path / "run")
    assert not (summary.final / "adapter").exists()
    found, base = (load_model(path).state_dict() for path in (summary.final, tiny_run.student))
    assert any(not torch.equal(found[name], base[name]) for name in base if "projector" in name)
