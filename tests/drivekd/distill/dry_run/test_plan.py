"""`train --dry-run`: its arithmetic on hand-made numbers, its sizes against real files, and that nothing stays behind."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import NO_TEACHERS, TinyRun
from typer.testing import CliRunner

from drivekd.cli import app
from drivekd.config import RunConfig, TrainingConfig
from drivekd.data.packs import Pack
from drivekd.distill.dry_run import disk_needs, plan
from drivekd.distill.dry_run import measured_footprint as footprint_measured
from drivekd.distill.dry_run.disk_needs import first_that_fits
from drivekd.distill.dry_run.footprint import Footprint, Shape, after, cheapest_fit
from drivekd.distill.dry_run.measured_footprint import with_setting
from drivekd.distill.dry_run.measured_steps import FileCosts, Measurement, StepTimes, expected_files
from drivekd.distill.dry_run.plan import Plan, dry_run, measured_config
from drivekd.distill.dry_run.run_times import Validation, num_checkpoints, num_validations, run_times
from drivekd.distill.dry_run.workload import Order, Workload, count, representative
from drivekd.distill.teachers.store import bytes_for
from drivekd.distill.training.memory import smaller_settings
from drivekd.distill.training.train import read_training_samples, train
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import TrainingError
from drivekd.sample import CAPABILITIES, Sample

pytestmark = pytest.mark.numerics

MB, GB = 10**6, 10**9
CPU = torch.device("cpu")


# --- what a run does ------------------------------------------------------------------------------------------------


def sample(number: int, *images: str) -> Sample:
    return Sample(f"record {number}", CAPABILITIES[number % 3], "why?", "a", tuple(map(Path, images)))


def order(packs: Sequence[Pack], steps: int, **changes: Any) -> Order:
    """Two packs a step, round and round; a question asks one teacher; ten pictures and features stay in memory."""

    def asked(step: int, samples: Sequence[Sample]) -> Iterable[Hashable]:
        return [(one.source, one.capability) for one in samples]

    fields: dict[str, Any] = {
        **{"steps": steps, "epoch_steps": -(-len(packs) // 2), "micro_batch_size": 1, "length": lambda pack: 10 * len(pack)},
        **{"packs_of": lambda step: [packs[(2 * step + i) % len(packs)] for i in range(2)], "asked": asked},
        **{"pictures_kept": 10, "features_kept": 10, "vision_trains": False, "vision_on_disk": False},
    }
    return Order(**{**fields, **changes})


FOUR = [(sample(n, f"{n}.png"),) for n in range(4)]  # two steps an epoch, 20 tokens a step


def test_what_is_kept_is_done_once_however_long_the_run() -> None:
    """Both in the steps that are walked through (two epochs = 4) and in those that are not."""
    for steps in (4, 40):
        found = count(order(FOUR, steps))
        assert (found.tokens, found.reads, found.encodes, found.asks) == (20 * steps, 4, 4, 4)
        assert len(found.features) == 4 and found.images == 4


def test_what_is_not_kept_is_done_again() -> None:
    """Room for three features and four pictures that come round in turn: each is gone when it comes again (3 < 4 <= 4)."""
    found = count(order(FOUR, 40, features_kept=3, pictures_kept=4))
    assert (found.reads, found.encodes) == (4, 80)
    found = count(order(FOUR, 40, features_kept=3, pictures_kept=4, vision_on_disk=True))
    assert (found.reads, found.encodes) == (4, 4)


def test_a_student_that_trains_its_vision_reads_pictures_beyond_memory_in_every_step() -> None:
    assert count(order(FOUR, 40, pictures_kept=3)).reads == 4  # features are kept: nothing is read again
    assert count(order(FOUR, 40, pictures_kept=3, vision_trains=True)).reads == 80


def test_a_picture_that_two_packs_of_a_step_show_counts_once() -> None:
    packs = [(sample(n, "same.png"),) for n in range(4)]
    found = count(order(packs, 2))
    assert (found.reads, found.encodes, found.asks) == (1, 1, 4)


def test_the_longest_step_is_that_of_the_largest_micro_batch() -> None:
    """Padded to its longest pack: with two packs at once 2 x 30 is more than 40, with one 40 is the most."""
    same = [sample(0, "a.png")] * 4
    packs = [tuple(same[:1]), tuple(same[:4]), tuple(same[:3]), tuple(same[:3])]
    packs[0] = (Sample("other", "planning", "why?", "a", (Path("a.png"),)),)  # of another capability: never in one micro-batch
    found = count(order(packs, 2, micro_batch_size=2))
    assert (found.longest_step, found.longest_tokens) == (1, 30)
    found = count(order(packs, 2, micro_batch_size=1))
    assert (found.longest_step, found.longest_tokens) == (0, 40)


def test_few_representative_steps_have_the_mean_of_many() -> None:
    """Of 300 random steps, eight chosen ones come closer to the mean than nearly all random eights do."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.gamma(2.0, size=(300, 3)), np.ones((300, 1))], 1)  # a constant feature says nothing

    def distance(steps: Iterable[int]) -> float:
        return float(np.linalg.norm(features[list(steps)].mean(0) - features.mean(0)))

    chosen = representative(features, 8)
    assert len(set(chosen)) == 8
    assert distance(chosen) < np.quantile([distance(rng.choice(300, 8, replace=False)) for _ in range(500)], 0.05)
    assert sorted(representative(features[:5], 8)) == list(range(5))


# --- how long it takes ----------------------------------------------------------------------------------------------

WORK = Workload(0, reads=100, encodes=50, asks=30, features=np.ones((1, 1)), longest_step=0, longest_tokens=0, images=0)
TIMES = StepTimes(again=[1.0, 3.0], asking=[2.0, 4.0], questions=[1, 2], read_s=0.1, encode_s=0.5)
FILES = FileCosts(checkpoint_bytes=1000, checkpoint_s=7.0, final_bytes=100, final_s=3.0)


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"steps": 10, "checkpoint_every_steps": 4, **changes})


def test_a_runs_seconds_are_the_sum_of_what_it_does() -> None:
    found = run_times(settings(), WORK, TIMES, FILES, Validation(5.0, (10, 0)), processes=1, setup_s=1.5)
    expected = {
        "steps": 20.0,  # 10 x mean(1, 3)
        "asking teachers once": 60.0,  # 30 questions x (2 + 4) / (1 + 2)
        "pictures": 100 * 0.1 + 50 * 0.5 + 10 * 0.6,
        "validation": 5.0,  # once, at the end
        "files": 2 * 7.0 + 3.0,  # at steps 4 and 8, and final/
        "start": 1.5,
    }
    assert found.by_part == pytest.approx(expected)
    error = 10 * 2 * 1.0  # two standard errors of the mean of 1 and 3, for each of 10 steps
    assert (found.low, found.high) == pytest.approx((found.total - error, found.total + error))


def test_processes_share_pictures_and_nothing_else() -> None:
    one, two = (run_times(settings(), WORK, TIMES, FILES, Validation(), processes=n, setup_s=0).by_part for n in (1, 2))
    assert two["pictures"] == one["pictures"] / 2
    assert {**one, "pictures": 0} == {**two, "pictures": 0}


def test_every_validation_is_counted_and_saves_a_best_student() -> None:
    training = settings(validate_every_steps=3)
    assert num_validations(training) == 4  # 3, 6, 9 and the last step
    assert num_checkpoints(training) == 6  # 4 and 8 besides
    found = run_times(training, WORK, TIMES, FILES, Validation(5.0, (10, 2)), processes=1, setup_s=0).by_part
    assert found["validation"] == 20.0
    assert found["files"] == 6 * 7.0 + (1 + 4) * 3.0
    assert found["pictures"] == pytest.approx(100 * 0.1 + 50 * 0.5 + (10 + 3 * 2) * 0.6)


# --- memory ---------------------------------------------------------------------------------------------------------

HELD = Footprint(student=10, teachers=20, optimizer=20, gradients=40, activations=800, other=10, available=1000)  # 900 in all
SHAPE = Shape(packs=8, tokens=400, sample_tokens=100, layers=10, layer_input_bytes=2, trainable=1000, adapter_width=5)


def needing(available: int) -> Footprint:
    return Footprint(**{**vars(HELD), "available": available})


@pytest.mark.parametrize(
    ("key", "value", "total"),
    [
        ("training.micro_batch_size", "2", 300),
        ("training.micro_batch_size", "8", 900),  # never more than before
        ("training.max_pack_tokens", "200", 500),
        ("training.max_pack_tokens", "50", 300),  # a sample of 100 tokens cannot be cut
        ("student.gradient_checkpointing", "true", 200),  # 10 inputs of 2, and a tenth of 800
        ("training.offload_gradients", "true", 860),
        ("teachers.precision", "bf16", 890),
        ("teachers.device", "cpu", 880),
        ("student.lora", "{rank: 16}", 840 + 60 * 80 // 1000),  # 80 of 1000 scalars train; rounded below
    ],
)
def test_what_each_setting_saves(key: str, value: str, total: int) -> None:
    found = after(HELD, SHAPE, key, value)
    assert found is not None and found.total == pytest.approx(total, abs=1)


LADDER = [
    ("training.micro_batch_size", "4"),
    ("training.max_pack_tokens", "200"),
    ("student.gradient_checkpointing", "true"),
    ("student.lora", "{rank: 16}"),
]


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (500, [("training.micro_batch_size", "4")]),
        (300, [("training.micro_batch_size", "2")]),
        (220, [("training.micro_batch_size", "1")]),
        (199, [("training.micro_batch_size", "1"), ("training.max_pack_tokens", "200")]),
        (60, None),  # student, teachers and other parts alone are 40, and layers' inputs 20
    ],
)
def test_the_cheapest_change_that_fits(available: int, expected: list[tuple[str, str]] | None) -> None:
    found = cheapest_fit(needing(available), SHAPE, LADDER)
    assert (None if found is None else list(found[0])) == expected
    if found is not None:
        assert found[1].total <= available


def test_a_later_setting_alone_goes_before_two_together() -> None:
    ladder = [("training.micro_batch_size", "4"), ("student.gradient_checkpointing", "true")]
    unmoved = Shape(**{**vars(SHAPE), "packs": 1})  # one pack at once: the first setting saves nothing
    found = cheapest_fit(needing(200), unmoved, ladder)
    assert found is not None and found[0] == (("student.gradient_checkpointing", "true"),)


def test_every_setting_that_is_advised_is_one_whose_effect_is_known(tiny_run: TinyRun) -> None:
    """One place knows what helps; a setting added there and unknown here would be passed over in silence."""
    config = tiny_run.config("training.packing=frame")
    for device in ("cpu", "cuda"):
        for key, value in smaller_settings(config, torch.device(device)):
            assert after(HELD, SHAPE, key, value) is not None, key
            with_setting(config, key, value)


# --- the whole plan against the whole run ---------------------------------------------------------------------------

SHORT = ("training.steps=4", "training.batch_size=3", "training.checkpoint_every_steps=2", "training.keep_checkpoints=1")


def cached(run: TinyRun, folder: Path, *more: str) -> RunConfig:
    return run.config(*SHORT, "student.train=[language_model]", f"cache.directory={folder / 'cache'}", *more)


def files_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.Measurement, "num_steps", lambda *_, **__: 2)


@pytest.mark.usefixtures("one_thread", "two_steps")
def test_sizes_are_those_of_the_real_run(family_run: TinyRun, tmp_path: Path) -> None:
    config = cached(family_run, tmp_path, "cache.fill_first=true")
    found = dry_run(config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []  # nothing stays, in the cache's place or the run's
    assert found.problems == [] and found.disk is not None
    train(config, tmp_path / "out")
    blocks = list((tmp_path / "cache").rglob("shard-*"))
    assert blocks
    num_blocks = 2 * (36 + 6) + 2 * 6  # two signals: at most a question and a prefix a sample; pictures in two towers
    slack = num_blocks * bytes_for((), "fp32")  # names, shapes and checksums
    written = files_in(tmp_path / "cache")
    assert found.disk.cache.total <= written <= found.disk.cache.total + slack
    checkpoint, final = files_in(tmp_path / "out/checkpoints"), files_in(tmp_path / "out/final")
    logs = 4 * disk_needs.LOG_BYTES_A_STEP
    # While step-4 is written step-2 is there. final/config.yaml, and numbers that are longer in the run: 5 kB
    assert 2 * checkpoint + final + logs == pytest.approx(found.disk.run, abs=5_000)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("more", [(), ("student.lora={rank: 2}", "student.train=[language_model]")])
def test_large_checkpoints_are_computed_and_small_ones_measured_alike(
    tiny_run: TinyRun, tmp_path: Path, more: Sequence[str]
) -> None:
    """What is too large to be written for a plan is computed from the tensors; JSON and headers are left out, 60 kB at most."""
    config = measured_config(tiny_run.config(*SHORT, *NO_TEACHERS, *more))
    trainer = Trainer(config, read_training_samples(config))
    measurement = plan.Measurement(trainer)
    measurement.warm_up(0)
    computed = expected_files(trainer)
    written = measurement.files(tmp_path / "out", computed)
    assert 0 <= written.checkpoint_bytes - computed.checkpoint_bytes < 60_000
    assert 0 <= written.final_bytes - computed.final_bytes < 60_000 + computed.final_bytes * bool(more)  # and an adapter
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_thread", "two_steps")
def test_a_full_cache_has_nothing_missing_and_stays_as_it_was(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = cached(tiny_run, tmp_path, "cache.fill_first=true")
    train(config, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    found = dry_run(config, tmp_path / "next")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before
    assert found.disk is not None and found.times is not None
    assert found.disk.there >= found.disk.cache.total and found.disk.missing == 0
    assert found.times.by_part["asking teachers once"] == 0


@pytest.mark.usefixtures("one_thread", "two_steps")
def test_measuring_moves_no_weight(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = []

    class Noted(Trainer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            trainers.append((self, {name: value.clone() for name, value in self.student.state_dict().items()}))

    monkeypatch.setattr(plan, "Trainer", Noted)
    dry_run(tiny_run.config(*SHORT), tmp_path / "out")
    ((trainer, before),) = trainers
    for name, value in trainer.student.state_dict().items():
        # AdamW moves a weight by at most a few learning rates a step: 1e-12 x ten steps
        torch.testing.assert_close(value, before[name], atol=1e-10, rtol=0)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.usefixtures("one_thread", "two_steps")
def test_a_disk_that_is_too_small_is_a_problem_with_advice(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_needs.shutil, "disk_usage", lambda _: Usage(10 * GB, 9 * GB, 1 * GB))
    found = dry_run(cached(tiny_run, tmp_path), tmp_path / "out")
    (problem,) = found.problems
    assert problem.startswith("Disk: cache and run directory: ") and "1,000.0 MB free" in problem
    assert "cache.directory=null" in problem
    assert dict(found.rows)["verdict"] == problem
    with pytest.raises(TrainingError, match="does not fit"):
        found.check()
    assert not dry_run(tiny_run.config(*SHORT), tmp_path / "out").problems  # a cache leaves 1.07 GB free, a run does not


def test_the_command_prints_the_table_and_fails_when_the_run_would(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("verdict", "what the table says")]
    arguments = ["train", str(tiny_run.yaml), "--dry-run", "--out", str(tmp_path / "out")]
    for problems in ([], ["Disk: too small."]):
        monkeypatch.setattr(plan, "dry_run", lambda config, out, found=problems: Plan(rows, None, None, found))
        result = CliRunner().invoke(app, arguments)
        assert "what the table says" in result.output
        assert isinstance(result.exception, TrainingError) == bool(problems)


def test_disk_advice_is_the_first_that_is_enough() -> None:
    cheaper = [("a=1", 5 * MB), ("b=2", 20 * MB), ("c=3", 50 * MB)]
    assert first_that_fits(cheaper, 10 * MB).startswith("b=2 ")
    assert first_that_fits(cheaper, 60 * MB).startswith("a=1 and b=2 and c=3 ")
    assert first_that_fits(cheaper, 80 * MB) == "free 80.0 MB, or choose another disk"


@pytest.mark.usefixtures("one_thread", "two_steps")
def test_too_little_memory_is_a_problem_with_advice(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint_measured, "available_bytes", lambda _: 1 * MB)
    found = dry_run(tiny_run.config(*SHORT), tmp_path / "out")
    assert any(problem.startswith("Memory of cpu: ") and "No setting makes it fit" in problem for problem in found.problems)


@pytest.mark.usefixtures("one_thread")
def test_running_out_of_memory_finds_settings_that_do_not(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four packs at once are too many for this device, two are not."""
    add = Trainer._add_gradients

    def limited(self: Trainer, batch: Any, *arguments: Any, **named: Any) -> Any:
        if len(batch.input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return add(self, batch, *arguments, **named)

    monkeypatch.setattr(Trainer, "_add_gradients", limited)
    found = dry_run(tiny_run.config("training.packing=none"), tmp_path / "out")
    assert found.times is None
    assert "--set training.micro_batch_size=2," in found.problems[-1] and "measured on cpu" in found.problems[-1]
    assert dict(found.rows)["cheapest change"] == found.problems[-1]


@pytest.mark.usefixtures("one_thread", "two_steps")
def test_the_rows_say_what_the_run_is(tiny_run: TinyRun, tmp_path: Path) -> None:
    found = dry_run(tiny_run.config("training.steps=4", "training.packing=frame"), tmp_path / "out")
    rows = dict(found.rows)
    assert (rows["labelled samples"], rows["unlabelled samples"], rows["validation samples"]) == ("18", "18", "18")
    assert rows["packs"] == "12 labelled, 12 unlabelled"  # six pictures alone, and six pairs
    assert rows["epochs"].startswith("2.00 of the labelled packs, 1.00 of the unlabelled ones")
    assert rows["verdict"] == "fits"
    Plan([], None, None, []).check()


def test_rounded_weights_are_a_part_of_memory(tiny_run: TinyRun, tmp_path: Path) -> None:
    """One copy of what trains and is rounded; also where it is rounded in the last steps alone, which are the largest then."""
    settings = ("student.quantization={last_steps: 2}", "training.steps=4", "student.train=[language_model]")
    trainer = Trainer(measured_config(tiny_run.config(*settings)), read_training_samples(tiny_run.config(*settings)))
    measurement = Measurement(trainer)
    measurement.warm_up(0)
    (found,) = footprint_measured.footprints(trainer, measurement, 0, 6)
    sizes = [p.numel() for name, p in trainer.student.named_parameters() if name.endswith("proj.weight") and "layers" in name]
    head = trainer.student.lm_head.weight.numel()
    assert found.rounded == 4 * (sum(sizes) + head)
    rows = dict(dry_run(tiny_run.config(*settings), tmp_path / "run").rows)
    assert "rounded" in rows["memory of cpu"]
    assert "rounded" not in dict(dry_run(tiny_run.config("training.steps=1"), tmp_path / "run").rows)["memory of cpu"]
