"""`drivekd analyze`: how much each decoder layer changes what it gets, for student and teachers, by capability.

Adjacent-layer cosine: cos(h_l, h_{l+1}) of the hidden states of a token, averaged over tokens and samples (METHOD section 6).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from drivekd.config import RunConfig
from drivekd.data.batch import Collator
from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.distill.run import read_training_samples
from drivekd.models.internvl import load_model
from drivekd.processor import load_processor
from drivekd.run_directory import refuse_non_empty, whole_directory, write_json_atomic

SAMPLES_PER_CAPABILITY = 64
BATCH_SIZE = 8


@torch.no_grad()
def adjacent_cosine(checkpoint: Path, samples: list[Sample]) -> NDArray[np.float64]:
    """cos(h_l, h_{l+1}) for l = 0 .. L-1 (h_0 = embeddings), mean over all real tokens of `samples`. Shape [L]."""
    model = load_model(checkpoint).eval()
    collate = Collator(load_processor(checkpoint))
    total: NDArray[np.float64] | float = 0.0
    tokens = 0
    for start in range(0, len(samples), BATCH_SIZE):
        batch = collate(samples[start : start + BATCH_SIZE])
        states = model.model(
            input_ids=batch.input_ids,
            pixel_values=batch.pixel_values,
            attention_mask=batch.attention_mask.long(),
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states  # (L + 1) x [B, S, D]
        pairs = pairwise(states)
        cosines = torch.stack([torch.cosine_similarity(a, b, dim=-1)[batch.attention_mask].sum() for a, b in pairs])
        total = total + cosines.double().numpy()
        tokens += batch.num_tokens
    return np.asarray(total) / tokens


def analyze(config: RunConfig, out: Path) -> tuple[list[str], list[list[str]]]:
    """Write analysis.json and adjacent_cosine.png into `out`; returns a table (header, rows).

    Raises UsageError when `out` holds anything.
    """
    refuse_non_empty(out, "give a new --out")
    samples = read_training_samples(config).labelled
    curves: dict[str, list[float]] = {}
    for capability in CAPABILITIES:
        chosen = [sample for sample in samples if sample.capability == capability][:SAMPLES_PER_CAPABILITY]
        models = {"student": config.student.checkpoint, "teacher": config.teachers.paths().get(capability)}
        for who, checkpoint in models.items():
            if chosen and checkpoint is not None:
                curves[f"{who}, {capability}"] = adjacent_cosine(checkpoint, chosen).tolist()
    with whole_directory(out) as directory:
        write_json_atomic(
            directory / "analysis.json", {"adjacent_cosine": curves, "samples_per_capability": SAMPLES_PER_CAPABILITY}
        )
        _plot(curves, directory / "adjacent_cosine.png")
    depth = max(len(curve) for curve in curves.values())
    header = ["layer", *curves]
    rows = [[str(layer), *(f"{c[layer]:.3f}" if layer < len(c) else "" for c in curves.values())] for layer in range(depth)]
    return header, rows


def _plot(curves: dict[str, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(np.arange(len(curve)) / max(1, len(curve) - 1), curve, marker="o", label=name)
    axes.set(xlabel="depth (0 = first decoder layer, 1 = last)", ylabel="cosine of adjacent layers", ylim=(None, 1.0))
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
