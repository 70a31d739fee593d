"""Two processes do what one does: DDP and FSDP2 over gloo, against the same trainer in this process.

Two real processes run every variant once, in one go, since starting them takes long. What needs shards but not two processes
runs here, in a process group of one: FSDP2 frees and gathers its weights there just the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parallel_worker
import pytest
import torch
import torch.distributed as dist
from parallel_worker import PLACEMENTS, trained
from places import ROOT
from tiny_run import NO_TEACHERS, TinyRun, start_trainer
from torch.distributed.tensor import DTensor
from two_processes import run_two

import drivekd.distill.training.trainer as trainer_module
from drivekd.distill.training.parallel import Parallel, Turn, balanced, in_step, join
from drivekd.distill.training.sharding import gathered, placed
from drivekd.errors import ConfigError

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

ACCELERATE = ROOT / "configs" / "accelerate"

COUNTED = ("training.validate_on=accuracy", "prompts.max_new_tokens=8")

# Each is what a way of communicating could get wrong; validation and the vision tower's gradients are in all but the last.
VARIANTS: dict[str, tuple[str, ...]] = {
    "released": ("signals.mixing=released", "student.gradient_checkpointing=true", "optimizer.clip_norm=1", *COUNTED),
    "own": ("projection.anchor=own", "training.packing=frame", "signals.mixing=sampled"),
    "starved": (
        "training.batch_size=1",
        "training.unlabelled_batch_size=2",
        "training.micro_batch_size=1",
        *COUNTED,
        "training.validation_samples=1",  # fewer questions than processes
    ),
    "dynamic": ("signals.weighting=dynamic", "signals.reasoning.loss=kl", "student.train=[language_model]"),
    "rounded": ("student.quantization={last_steps: 4}", "student.gradient_checkpointing=true", *COUNTED),
    "rounded adapters": ("student.quantization={}", "student.train=[language_model]", "student.lora={rank: 4}"),
}
# Sums of two halves round otherwise than whole sums. Measured over all variants: 2.8e-6 of a norm in a record, and weights
# apart by 2.4e-5 of the way that they have moved (1.4e-6 of the weights): AdamW divides by a gradient's size, so that a weight
# whose gradient is rounding errors alone moves as far as any other.
RTOL_RECORD, RTOL_MOVED = 1e-5, 2e-4


@pytest.fixture(scope="session")
def two_processes(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes left; see parallel_worker."""
    out = tmp_path_factory.mktemp("two")
    run_two(parallel_worker.run, tiny_run.folder, out, VARIANTS)
    return out


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainers of this test are sharded, over this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(trainer_module, "join", lambda device: Parallel(torch.device("cpu"), sharded=True))
    yield
    dist.destroy_process_group()


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for step, (ours, theirs) in enumerate(zip(found["records"], expected["records"], strict=True), 1):
        assert (ours["tokens"], ours["samples"]) == (theirs["tokens"], theirs["samples"])
        for key in ("loss", "weight", "gradient_norm", "update_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=RTOL_RECORD), f"step {step}: {key}"
    assert found["validation"] == pytest.approx(expected["validation"], rel=RTOL_RECORD)
    if expected["accuracy"] is None:
        assert found["accuracy"] is None
    else:  # before the first step: the same weights give the same words
        assert found["accuracy"] == pytest.approx(expected["accuracy"], rel=RTOL_RECORD)
    start = expected["before"]
    moved = sum(float((value - start[name]).double().square().sum()) for name, value in expected["weights"].items())
    apart = sum(float((value - found["weights"][name]).double().square().sum()) for name, value in expected["weights"].items())
    assert moved > 0
    assert (apart / moved) ** 0.5 <= RTOL_MOVED


# --- two processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_update_as_one(tiny_run: TinyRun, two_processes: Path, variant: str, placement: str) -> None:
    expected = trained(start_trainer(tiny_run, *VARIANTS[variant]))
    first, second = (torch.load(two_processes / f"{variant}-{placement}-{rank}.pt") for rank in (0, 1))
    assert_same_training(first, expected)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["validation"] == second["validation"]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_nan_stops_both_processes_at_one_step(two_processes: Path, placement: str) -> None:
    first, second = (torch.load(two_processes / f"diverged-{placement}-{rank}.pt") for rank in (0, 1))
    assert first[0] == second[0] < parallel_worker.STEPS
    for _, message in (first, second):
        assert re.match(r"step \d: (the gradient of )?the loss term '\w+' (is|has the norm) (nan|inf); training stopped", message)


def test_processes_agree(two_processes: Path) -> None:
    first, second = (torch.load(two_processes / f"agreement-{rank}.pt") for rank in (0, 1))
    assert (first["rank"], first["is_main"], second["rank"], second["is_main"]) == (0, True, 1, False)
    assert first["part"] + second["part"] == list(range(5))
    for found in (first, second):
        assert found["sums"] == [3.0, 1.0]
        assert found["any"] == [True, False]
        assert found["drawn"] == [7.0, 7.0]
        assert found["after"]
    assert first["failure"] == (True, "stopped because process 1 of 2 failed: records.json, record 7: gone")
    assert second["failure"] == (False, "records.json, record 7: gone")


# --- who computes what ----------------------------------------------------------------------------------------------


def test_balanced_gives_everything_once_and_nobody_much_more() -> None:
    lengths = [9, 1, 5, 5, 2, 7, 3]
    for size in (1, 2, 3, 8):
        hands = balanced(lengths, size, lambda length: length)
        assert sorted(length for hand in hands for length in hand) == sorted(lengths)
        loads = [sum(hand) for hand in hands]
        assert max(loads) - min(loads) <= max(lengths)  # the dearest first: whoever has most had least before its last one


def test_in_step_turns_are_of_one_kind_and_count_once() -> None:
    words = ["aa", "b", "ab", "c", "ba", "bb", "cb"]
    for size in (1, 2, 3, 8):
        hands = in_step(words, size, lambda word: word[0])
        assert len({len(hand) for hand in hands}) == 1
        for turns in zip(*hands, strict=True):
            assert len({turn.micro_batch[0] for turn in turns}) == 1
        assert sorted(turn.micro_batch for hand in hands for turn in hand if turn.counts) == sorted(words)


def test_one_process_has_everything_and_waits_for_nobody() -> None:
    alone = Parallel(torch.device("cpu"))
    assert alone.turns([3, 1, 2], lambda cost: cost, lambda _: None) == [Turn(3), Turn(2), Turn(1)]
    assert alone.part_of([1, 2, 3]) == [1, 2, 3]
    assert (alone.sums([2.5]), alone.any(True), alone.any(False), alone.is_main) == ([2.5], True, False, True)


# --- shards ---------------------------------------------------------------------------------------------------------

# No CE comes first, whose backward pass would gather every layer's weights before a map's does.
SIGNALS_ALONE = (
    "training.batch_size=1",
    "training.unlabelled_batch_size=5",
    "training.micro_batch_size=1",
    "signals.weighting=static",
)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_maps_of_all_layers_reach_sharded_weights(
    tiny_run: TinyRun, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else "storage of size 0" (docs/method.md). Every layer is captured: whole maps for reasoning, rows for the others."""
    overrides = (*SIGNALS_ALONE, f"student.gradient_checkpointing={str(checkpointing).lower()}", "signals.mixing=released")
    sharded = start_trainer(tiny_run, *overrides)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.names)
    found = trained(sharded)
    monkeypatch.undo()
    assert_same_training(found, trained(start_trainer(tiny_run, *overrides)))


@pytest.mark.usefixtures("group_of_one")
def test_shards_are_released_before_weights_change(tiny_run: TinyRun) -> None:
    trainer = start_trainer(tiny_run)
    trainer.step()
    assert all(isinstance(parameter, DTensor) for parameter in trainer.student.parameters())
    trainer.validate()
    assert all(isinstance(parameter, DTensor) for parameter in trainer.student.parameters())


@pytest.mark.usefixtures("group_of_one")
def test_frozen_towers_stay_whole(tiny_run: TinyRun) -> None:
    trainer = start_trainer(tiny_run, "student.train=[language_model]")
    for name, parameter in trainer.student.named_parameters():
        assert isinstance(parameter, DTensor) == ("language_model" in name), name
    trainer.step()


@pytest.mark.usefixtures("group_of_one")
def test_placed_undoes_gathered(tiny_run: TinyRun) -> None:
    trainer = start_trainer(tiny_run)
    weights = dict(trainer.student.named_parameters())
    whole = gathered(weights, keep=True)
    assert gathered(weights, keep=False) == {}
    for name, parameter in weights.items():
        again = placed(whole[name], parameter)
        assert isinstance(again, DTensor)
        assert again.placements == parameter.placements
        assert torch.equal(again.full_tensor(), whole[name])
        assert torch.equal(placed(whole[name], whole[name]), whole[name])


# --- what the launcher is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "processes", "kind"),
    [
        ("one-gpu", 1, "NO"),
        ("eight-gpus-ddp", 8, "MULTI_GPU"),
        ("eight-gpus-fsdp2", 8, "FSDP"),
        ("cpu-2-ddp", 2, "MULTI_GPU"),
        ("cpu-2-fsdp2", 2, "FSDP"),
    ],
)
def test_shipped_launcher_configurations_are_read(name: str, processes: int, kind: str) -> None:
    """The two cpu-2 ones are launched in tests/drivekd/distill/training/test_train_distributed.py; the others need CUDA."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))
    assert (config.num_processes, config.distributed_type, config.mixed_precision) == (processes, kind, "no")
    assert getattr(config, "fsdp_config", None) == ({"fsdp_version": 2, "fsdp_offload_params": False} if kind == "FSDP" else {})


def test_every_launcher_configuration_is_tested() -> None:
    assert len(list(ACCELERATE.glob("*.yaml"))) == 5


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version is 1.*needs fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "offload_gradients"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DDP or FSDP2"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "DDP or FSDP2"),
    ],
)
def test_other_placements_are_refused(launched: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name, value in variables.items():
        launched.setenv(name, value)
    with pytest.raises(ConfigError, match=expected):
        join("cpu")


def test_one_device_for_several_processes_is_refused(launched: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"training\.device = 'cuda:1' names one device.*use auto"):
        join("cuda:1")


def test_projecting_micro_batches_is_refused_in_two_processes(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of two processes' micro-batches would be mixed before they are projected: another method under the same name."""
    monkeypatch.setattr(trainer_module, "join", lambda device: Parallel(torch.device("cpu"), size=2))
    with pytest.raises(ConfigError, match=r'projection\.unit = "micro_batch".*here are 2 processes.*"step"'):
        start_trainer(tiny_run, "projection.unit=micro_batch", *NO_TEACHERS)
