"""Two real processes under `accelerate launch`: DDP and FSDP2 get where one process gets, and stops and kills cost nothing.

Processes talk over gloo on 127.0.0.1. Variants of a step: tests/drivekd/distill/training/test_parallel.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from places import ROOT
from safetensors.torch import load_file
from tiny_run import TinyRun, start_trainer
from torch import Tensor

from drivekd.distill.teachers.teachers import Teacher
from drivekd.distill.training.train import train
from drivekd.log import read_metrics
from drivekd.models import load_model

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]

ACCELERATE = ROOT / "configs" / "accelerate"
STEPS = 6
LENGTH = (f"training.steps={STEPS}", "training.checkpoint_every_steps=2", "training.keep_checkpoints=9")
DEADLINE_S = 240  # a loaded machine; nothing is measured

# Sums of two halves round otherwise than whole sums, and AdamW makes as much of rounding errors as of gradients; measured 2e-6.
RTOL_WEIGHTS = 1e-5
RTOL_RECORD = 1e-5


@pytest.fixture(scope="module")
def alone(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone") / "run"
    train(tiny_run.config(*LENGTH), out)
    return out


@contextmanager
def launched(
    placement: str, tiny_run: TinyRun, out: Path, *overrides: str, resume: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """`accelerate launch` with the YAML that we ship; whatever is left of it is killed in the end."""
    sets = [argument for override in (*LENGTH, *overrides) for argument in ("--set", override)]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE / f"cpu-2-{placement}.yaml")]
    command = [*launch, "-m", "drivekd.cli", "train", str(tiny_run.yaml), *sets, "--out", str(out), *["--resume"] * resume]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def wait_for(launcher: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not what():
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def kill_second_process(launcher: subprocess.Popen[str]) -> None:
    """SIGKILL to rank 1."""
    workers = psutil.Process(launcher.pid).children(recursive=True)
    (second,) = (worker for worker in workers if worker.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)


def assert_same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    apart = sum(float((found[name] - value).double().square().sum()) for name, value in expected.items()) ** 0.5
    assert apart <= RTOL_WEIGHTS * sum(float(value.double().square().sum()) for value in expected.values()) ** 0.5


def assert_same_run(found: Path, expected: Path) -> None:
    assert_same_weights(*(load_file(out / "final" / "model.safetensors") for out in (found, expected)))
    records, wanted = (read_metrics(out / "metrics.jsonl") for out in (found, expected))
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))  # one process writes
    for ours_now, theirs_now in zip(records, wanted, strict=True):
        assert ours_now["tokens"] == theirs_now["tokens"]
        for key in ("loss", "weight", "gradient_norm", "update_norm"):
            assert ours_now[key] == pytest.approx(theirs_now[key], rel=RTOL_RECORD)


def test_ddp_stops_together_and_its_cache_serves_one_process(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, endless = tmp_path / "run", ("training.steps=500", "training.checkpoint_every_steps=500")
    cache = (f"cache.directory={tmp_path / 'cache'}", "cache.fill_first=true")
    with launched("ddp", tiny_run, out, *endless, *cache) as process:
        wait_for(process, lambda: (out / "metrics.jsonl").exists() and len(read_metrics(out / "metrics.jsonl")) >= 2)
        process.terminate()
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode != 0
    stopped_at = len(read_metrics(out / "metrics.jsonl"))
    assert f"after step {stopped_at} of 500; everything is saved" in stderr
    checkpoint = out / "checkpoints" / f"step-{stopped_at}"

    reader = start_trainer(tiny_run, *LENGTH, *endless, *cache)
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "maps", lambda *_: pytest.fail("a block is missing in the cache"))
        reader.fill_cache()
    for store in (tmp_path / "cache").glob("signal-*"):
        assert {path.name.split("-")[1] for path in store.glob("shard-*")} == {"0", "1"}, store
    for _ in range(stopped_at):
        reader.step()
    assert_same_weights(load_model(checkpoint).state_dict(), reader.student.state_dict())


def test_fsdp2_survives_a_killed_process(tiny_run: TinyRun, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with launched("fsdp2", tiny_run, out) as process:
        wait_for(process, (out / "checkpoints" / "step-2").exists)
        kill_second_process(process)
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode != 0
    assert not (out / "final").exists()
    shutil.copytree(out, tmp_path / "copy")
    with launched("fsdp2", tiny_run, out, resume=True) as process:
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, stderr
    assert_same_run(out, alone)
    train(tiny_run.config(*LENGTH), tmp_path / "copy", resume=True)  # in one process: another number of them may go on
    assert_same_run(tmp_path / "copy", alone)
