"""Our gradients against the released algorithm's, row by row, in fp32 and before any approximation.

Ours are read off what the trainer gives to AdamW, by its configuration alone: CE by a run without teachers; a signal by a run
with its teacher alone and a weight so large that subtracting CE costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.distill.models import BenchmarkFolder
from benchmarks.distill.released import load_student, load_teacher, released_gradients
from benchmarks.distill.variants import MIXINGS, MixingName, released_inputs, run_config, trainer

TOLERANCE = 1e-5  # relative, fp32: the issue's own bound
WEIGHT = 1e6  # a signal's gradient is 1e-4 to 1e-2 of CE's: this makes it 1e2 and more


def agreement(folder: BenchmarkFolder, mixing: MixingName) -> dict[str, float]:
    """{row: ‖ours - baseline's‖ / ‖baseline's‖} over the folder's records, all trainable parameters as one vector."""
    ours, theirs = drivekd_gradients(folder, mixing), baseline_gradients(folder, mixing)
    return {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs}


def baseline_gradients(folder: BenchmarkFolder, mixing: MixingName) -> dict[str, Tensor]:
    """The mean over the records of the released code's unweighted gradients by row, each [P]."""
    student = load_student(folder.student)
    teachers = {name: load_teacher(path) for name, path in folder.teachers.items()}
    window = released_inputs(folder, "records")
    total: dict[str, Tensor] = {}
    for inputs in window:
        gradients, _ = released_gradients(student, teachers, inputs, MIXINGS[mixing][inputs.capability])
        for name, gradient in gradients.items():
            vector = torch.cat([part.flatten() for part in gradient]) / len(window)
            total[name] = total[name] + vector if name in total else vector
    return total


def drivekd_gradients(folder: BenchmarkFolder, mixing: MixingName) -> dict[str, Tensor]:
    """The trainer's unweighted gradients by row, each [P]."""
    common = ("projection.method=sum", f"signals.mixing={mixing}")
    ce = _update(folder, (*common, "teachers={}"))
    found = {"ce": ce}
    for name, checkpoint in folder.teachers.items():
        alone = (f"teachers={{{name}: {checkpoint}}}", f"signals.{name}.weight={WEIGHT}")
        found[name] = (_update(folder, (*common, *alone)) - ce) / WEIGHT
    return found


def _update(folder: BenchmarkFolder, overrides: Sequence[str]) -> Tensor:
    """The direction [P] that one step gives to AdamW."""
    ours = trainer(run_config(folder, "records", torch.get_num_threads(), overrides))
    ours.step()
    return torch.cat([p.grad.flatten() for p in ours.student.parameters() if p.grad is not None])
