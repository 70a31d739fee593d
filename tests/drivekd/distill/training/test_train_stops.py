"""What stops a training run early: kill -9, Ctrl-C, memory, NaN. What was saved goes on to the bit; the last line says how."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import TinyRun
from train_cases import STEPS, assert_same_run, configured, overrides, same_weights, steps_of

from drivekd.distill.training.checkpoint import newest_checkpoint
from drivekd.distill.training.train import train
from drivekd.errors import TrainingError

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]


# --- kill -9 and Ctrl-C ---------------------------------------------------------------------------------------------


HELD = """
import time
from pathlib import Path
from drivekd.cli import main
from drivekd.distill.training.objectives import Objectives

honest = Objectives.losses

def held(self, batch, size):
    while size.step == LAST and not Path(GO).exists():
        time.sleep(0.01)
    return honest(self, batch, size)

Objectives.losses = held
main()
"""


def start_process(tiny_run: TinyRun, out: Path) -> subprocess.Popen[str]:
    """A run that waits before its last step until go(out): however late this process is, it finds the run unfinished."""
    settings = [argument for override in overrides(out) for argument in ("--set", override)]
    code = HELD.replace("LAST", str(STEPS)).replace("GO", repr(str(out.with_suffix(".go"))))
    command = [sys.executable, "-c", code, "train", str(tiny_run.yaml), *settings, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def go(out: Path) -> None:
    out.with_suffix(".go").touch()


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Return as soon as metrics.jsonl shows the step."""
    deadline_s = time.monotonic() + 240  # a loaded machine; nothing is measured
    path = out / "metrics.jsonl"
    while time.monotonic() < deadline_s and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"no step {step} in {path}; exit code {process.poll()}, stderr {process.communicate()[1]}")


@pytest.mark.parametrize("moment", [0, 1, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 3, 4))])
def test_kill_9_at_any_moment_and_resume_is_bit_equal(
    tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path, moment: int
) -> None:
    chance = random.SystemRandom()
    step = chance.randint(3, 8)  # the first checkpoint is at 2
    process = start_process(tiny_run, tmp_path / "run")
    try:
        wait_for_step(process, tmp_path / "run", step)
        time.sleep(chance.uniform(0, 0.2))  # a step takes about so long: anywhere in a step, a checkpoint, a flush of the cache
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL, f"killed at step {step}"
    assert not (tmp_path / "run" / "final").exists()
    train(configured(tiny_run, tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_ctrl_c_saves_says_so_and_resumes_bit_equal(tiny_run: TinyRun, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_process(tiny_run, out)
    try:
        wait_for_step(process, out, 3)
        process.send_signal(signal.SIGINT)
        go(out)
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    stopped_at = steps_of(out)[-1]
    assert process.returncode == 1
    assert stdout == ""
    assert stderr.splitlines()[-1] == (
        f"error: stopped by SIGINT after step {stopped_at} of {STEPS}; everything is saved, continue with --resume --out {out}"
    )
    assert "Traceback" not in stderr
    assert stopped_at < STEPS
    found = newest_checkpoint(out / "checkpoints")
    assert found[1].step == stopped_at
    train(configured(tiny_run, out), out, resume=True)
    assert same_weights(out, uninterrupted)
    assert steps_of(out) == list(range(1, STEPS + 1))


# --- out of memory --------------------------------------------------------------------------------------------------

STARVED = """
import resource, sys
from pathlib import Path
import torch
from drivekd.cli import main
from drivekd.distill.training.objectives import Objectives

honest, calls = Objectives.losses, 0

def hungry(self, batch, size):
    if size.step == 4:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
        torch.ones(1 << 26)  # 256 MB, as a long pack would want
    return honest(self, batch, size)

Objectives.losses = hungry
main()
"""


def test_out_of_memory_says_what_to_lower_and_the_advice_works(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A real limit, torch's real error, and the very command that the message gives."""
    out = tmp_path / "run"
    settings = [argument for override in overrides(out) for argument in ("--set", override)]
    command = [sys.executable, "-c", STARVED, "train", str(tiny_run.yaml), *settings, "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    said = result.stderr.splitlines()[-1]
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert re.match(r"error: out of memory on cpu: [\d,]+ of [\d,]+ MB used at the peak\. ", said), said
    knobs = (
        "training.micro_batch_size=1, training.max_pack_tokens=2048, student.gradient_checkpointing=true, "
        "teachers.precision=bf16, student.lora={rank: 16}"
    )
    assert (
        f"What helps, cheapest first: {knobs}. The last checkpoint is {out / 'checkpoints' / 'step-4'}; continue with: " in said
    )
    advised = re.search(r"continue with: drivekd (.*) \(.*can't allocate memory", said)
    assert advised is not None, said
    again = subprocess.run([sys.executable, "-m", "drivekd.cli", *advised[1].split()], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert steps_of(out) == list(range(1, STEPS + 1))


# --- NaN ------------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_stops_and_names_the_term(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = configured(tiny_run, tmp_path / "run", "optimizer.learning_rate=1e30", "training.checkpoint_every_steps=1")
    what = r"step \d+: the loss term '\w+' is (nan|inf); .*It came up in a micro-batch with .*train\.json, record \d+"
    with pytest.raises(TrainingError, match=rf"{what}.*learning_rate.* The last checkpoint is .*checkpoints/step-\d+$"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert all(bool(torch.isfinite(value).all()) for value in load_file(path / "model.safetensors").values())
