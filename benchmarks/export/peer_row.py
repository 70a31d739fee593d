"""What every peer of `quantized_peers.py` reads and prints. Needs numpy alone: peers run in environments of their own.

A row says who quantized, the form, what is stored (`Size`), the seconds that it took, and of each text the mean negative log
likelihood of its tokens and the most likely token behind each of them. T tokens of a text, V entries of the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUTS_FILE = "inputs.json"
LANGUAGE_FOLDER = "language"  # the fp32 checkpoint of the work folder
CALIBRATION_WINDOW = 1024  # tokens that a peer reads at once

Logits = Callable[[Sequence[int]], NDArray[np.float32]]  # T token ids -> [T, V]


@dataclass(frozen=True)
class Inputs:
    """texts: token ids by name; spelled: the same as text. calibration: token ids."""

    texts: dict[str, list[int]]
    spelled: dict[str, str]
    calibration: list[int]

    def windows(self) -> list[list[int]]:
        """The calibration tokens in whole windows."""
        ends = range(CALIBRATION_WINDOW, len(self.calibration) + 1, CALIBRATION_WINDOW)
        return [self.calibration[end - CALIBRATION_WINDOW : end] for end in ends]


@dataclass(frozen=True)
class Stored:
    """Weights of one kind as they are kept. payload_bits: of all values and zero points; scale_bits: of each of the scales."""

    weights: int
    payload_bits: int
    scales: int
    scale_bits: int

    def bits(self, scale_bits: int | None = None) -> float:
        """Of a weight, everything counted. scale_bits: as if scales had these."""
        return (self.payload_bits + self.scales * (scale_bits or self.scale_bits)) / self.weights

    def __add__(self, other: Stored) -> Stored:
        assert self.scale_bits == other.scale_bits
        return Stored(
            self.weights + other.weights, self.payload_bits + other.payload_bits, self.scales + other.scales, self.scale_bits
        )


@dataclass(frozen=True)
class Size:
    """linears, head: see Stored. file_mb: of the files, None where the peer wrote none (weights simulated in torch)."""

    linears: Stored
    head: Stored
    file_mb: float | None = None


def size_from_json(found: dict[str, Any]) -> Size:
    """Of a printed row."""
    return Size(Stored(**found["linears"]), Stored(**found["head"]), found["file_mb"])


def blocks(weights: int, bits: int, block: int, *, scale_bits: int, zero_bits: int = 0) -> Stored:
    """Weights in whole blocks with a scale, and a zero point, each."""
    count = weights // block
    return Stored(weights, weights * bits + count * zero_bits, count, scale_bits)


def inputs_of(work: Path) -> Inputs:
    found = json.loads((work / INPUTS_FILE).read_text(encoding="utf-8"))
    return Inputs(found["texts"], found["spelled"], found["calibration"])


def scored(logits_of: Logits, inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Of each text: nll and tokens."""
    return {name: _scores(logits_of(ids), ids) for name, ids in inputs.texts.items()}


def _scores(logits: NDArray[np.float32], ids: Sequence[int]) -> dict[str, Any]:
    before = logits[: len(ids) - 1].astype(np.float64)  # [T - 1, V]: behind each token but the last
    largest = before.max(-1, keepdims=True)
    total = np.log(np.exp(before - largest).sum(-1)) + largest[:, 0]
    likelihood = before[np.arange(len(before)), np.asarray(ids[1:])] - total
    return {"nll": float(-likelihood.mean()), "tokens": before.argmax(-1).tolist()}


def print_row(
    who: str, form: str, size: Size, seconds: float, scores: dict[str, Any], packages: Sequence[str] = (), note: str = ""
) -> None:
    """The last line of a peer's process. seconds: of quantizing alone. packages: whose versions the row depends on."""
    versions = {name: version(name) for name in packages}
    row = {"who": who, "form": form, "size": asdict(size), "seconds": seconds, "scores": scores, "note": note}
    print(json.dumps({**row, "versions": versions}), file=sys.stdout, flush=True)


def variant_of(description: str | None, variants: Sequence[str] | dict[str, Any]) -> tuple[Path, str]:
    """A peer's command line: the work folder and which variant."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help=f"folder with {INPUTS_FILE}")
    parser.add_argument("--variant", choices=list(variants), required=True)
    arguments = parser.parse_args()
    return arguments.work, arguments.variant
