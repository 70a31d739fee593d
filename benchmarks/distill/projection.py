"""AGP in coefficient space against AGP on projected copies of every gradient, as the released code does it: time and peak memory.

Both start from the same four fp32 gradients of the same parameters and end with the update in `.grad`. Each measurement is a
process of its own (peak memory only ever grows), the two ways take turns, and the parent checks that they agree.

    python -m benchmarks.distill.projection --parameters 500000000 --repeats 3 --threads 2
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

from benchmarks.memory import memory_mb
from drivekd.distill.projection import project
from drivekd.distill.training.gradients import GradientRows

NUM_ROWS = 4  # CE and three capabilities
ORDER = (2, 1, 3)
MATRIX = (896, 4864)  # InternVL3-1B's feed-forward
WAYS = ("coefficients", "copies")
Gradient = list[Tensor]  # one tensor for each parameter


def shapes(num_parameters: int) -> list[tuple[int, ...]]:
    """Matrices of MATRIX, and a vector for what is left."""
    whole, rest = divmod(num_parameters, MATRIX[0] * MATRIX[1])
    return [MATRIX] * whole + ([(rest,)] if rest else [])


def make_gradients(num_parameters: int) -> list[Gradient]:
    """Every capability opposes CE a little, and the others: both stages have work."""
    generator = torch.Generator().manual_seed(0)
    rows = [[torch.randn(shape, generator=generator) for shape in shapes(num_parameters)] for _ in range(NUM_ROWS)]
    for row, lean in enumerate((-0.3, -0.5, 0.2), start=1):
        for ours, ce in zip(rows[row], rows[0], strict=True):
            ours.add_(ce, alpha=lean)
    for ours, other in zip(rows[3], rows[2], strict=True):
        ours.add_(other, alpha=-3.0)
    return rows


def with_coefficients(gradients: list[Gradient], parameters: list[nn.Parameter]) -> None:
    rows = GradientRows(parameters, NUM_ROWS)
    for row, gradient in enumerate(gradients):
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter.grad = part
        rows.collect(row)
    gradients.clear()  # the rows are these tensors; nobody else keeps them
    rows.write_update(project(rows.gram(), ORDER).coefficients)


def with_copies(gradients: list[Gradient], parameters: list[nn.Parameter]) -> None:
    """AGP word by word (docs/method.md): clone, dot, subtract; tensor by tensor, dot products in fp32 as autograd left them."""
    anchor, *followers = gradients
    merged = [added(without_conflict(clone(follower), anchor), anchor) for follower in (followers[i - 1] for i in ORDER)]
    total = [torch.zeros_like(part) for part in anchor]
    for i, mine in enumerate(merged):
        projected = clone(mine)
        for j, other in enumerate(merged):
            if i != j:
                projected = without_conflict(projected, other)
        total = added(total, projected)
    for parameter, part in zip(parameters, total, strict=True):
        parameter.grad = part


def clone(gradient: Gradient) -> Gradient:
    return [part.clone() for part in gradient]


def dot(a: Gradient, b: Gradient) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def without_conflict(gradient: Gradient, other: Gradient) -> Gradient:
    conflict = dot(gradient, other)
    if conflict >= 0:
        return gradient
    factor = conflict / dot(other, other)
    return [x - factor * y for x, y in zip(gradient, other, strict=True)]


def added(a: Gradient, b: Gradient) -> Gradient:
    return [x + y for x, y in zip(a, b, strict=True)]


def measure(way: str, num_parameters: int, threads: int) -> dict[str, object]:
    """In a process of its own. peak_mb: resident memory above that of the four gradients and the parameters."""
    torch.set_num_threads(threads)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes(num_parameters)]
    gradients = make_gradients(num_parameters)
    before_mb = memory_mb()["rss_mb"]
    started_s = time.perf_counter()
    (with_coefficients if way == "coefficients" else with_copies)(gradients, parameters)
    seconds = time.perf_counter() - started_s
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    digest = [float(part.double().norm()) for part in found] + [float(part.flatten()[::7919].double().sum()) for part in found]
    peak_mb = memory_mb()["peak_mb"] - before_mb
    return {"way": way, "seconds": seconds, "peak_mb": max(0.0, peak_mb), "digest": digest}


def in_a_process(way: str, num_parameters: int, threads: int) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.distill.projection", "--way", way, "--parameters", str(num_parameters)]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    result: dict[str, object] = json.loads(done.stdout)
    return result


def compare(num_parameters: int, repeats: int, threads: int) -> dict[str, object]:
    """Alternate the two ways; medians, spread, and whether they agree."""
    found: dict[str, list[dict[str, object]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            found[way].append(in_a_process(way, num_parameters, threads))
    ours, theirs = (torch.tensor(found[way][0]["digest"], dtype=torch.float64) for way in WAYS)
    summary: dict[str, object] = {
        "parameters": num_parameters,
        "gradients": NUM_ROWS,
        "gradients_mb": NUM_ROWS * num_parameters * 4 / 2**20,
        "threads": threads,
        "repeats": repeats,
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "largest_relative_difference": float((ours - theirs).abs().max() / theirs.abs().max()),
    }
    for way in WAYS:
        seconds = [float(str(one["seconds"])) for one in found[way]]
        summary[way] = {
            "seconds_median": statistics.median(seconds),
            "seconds_min": min(seconds),
            "seconds_max": max(seconds),
            "peak_mb_above_gradients": max(float(str(one["peak_mb"])) for one in found[way]),
        }
    return summary


def print_table(summary: dict[str, object]) -> None:
    size = f"{NUM_ROWS} gradients fp32 = {summary['gradients_mb']:.0f} MB"
    print(f"{summary['parameters']:,} parameters, {size}, {summary['threads']} threads")
    print(f"{'way':14}{'median s':>10}{'min s':>9}{'max s':>9}{'peak MB above the gradients':>30}")
    for way in WAYS:
        row = summary[way]
        assert isinstance(row, dict)
        print(
            f"{way:14}{row['seconds_median']:10.3f}{row['seconds_min']:9.3f}{row['seconds_max']:9.3f}{row['peak_mb_above_gradients']:30.0f}"
        )
    print(f"largest relative difference of the updates' norms and samples: {summary['largest_relative_difference']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=500_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process (used by the parent)")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.parameters, arguments.threads)))
        return
    summary = compare(arguments.parameters, arguments.repeats, arguments.threads)
    print_table(summary)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
