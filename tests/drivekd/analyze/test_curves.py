"""`drivekd analyze`'s curves of real models equal a slow dense computation, whatever the batches and their order.

L layers, S positions of one sample, D width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analyze_cases import CPU, Numbers, cosine, mean_pairwise, write_qwen
from numpy.typing import NDArray
from tiny_run import TinyRun
from torch import Tensor

from drivekd.analyze.curves import Curves
from drivekd.analyze.measured_model import MeasuredModel, token_grid
from drivekd.data.batch import IGNORED_LABEL, Collator
from drivekd.data.packs import single_packs
from drivekd.data.readers import read_samples
from drivekd.hf_checkpoint import load_processor
from drivekd.models import encode_images, language_model, load_model, rotary_positions
from drivekd.sample import Sample

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

FP32_ATOL = 2e-5  # two ways of computing in fp32, values of about 1; margins of several logits get ten times that


@dataclass(frozen=True)
class Case:
    """A checkpoint of one family and records that show one or two pictures."""

    checkpoint: Path
    samples: list[Sample]

    def measured(self, dtype: torch.dtype = torch.float32) -> MeasuredModel:
        return MeasuredModel(self.checkpoint, CPU, dtype)


@pytest.fixture(scope="module", params=["internvl", "qwen2_5_vl"])
def case(request: pytest.FixtureRequest, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Case:
    samples = read_samples(tiny_run.folder / "train.json")[:9]
    if request.param == "internvl":
        return Case(tiny_run.teacher, samples)
    folder = tmp_path_factory.mktemp("qwen") / "model"
    write_qwen(folder)
    return Case(folder, samples)


# --- the dense computation ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dense:
    """Everything of one sample. states [L + 1, S, D], attention [L, S, S], logits [S, C], vision [S], labels [S]."""

    states: Numbers
    attention: Numbers
    logits: Numbers
    vision: NDArray[np.bool_]
    labels: NDArray[np.int64]
    num_images: int


@torch.no_grad()
def dense(case: Case) -> list[Dense]:
    """Each sample alone, eager attention, every layer's states and maps kept."""
    model: Any = load_model(case.checkpoint, attention="eager").eval()
    collate = Collator(load_processor(case.checkpoint))
    decoder: Any = language_model(model)
    found = []
    for pack in single_packs(case.samples):
        batch = collate([pack])
        features = encode_images(model, collate.pixel_values(batch.images[0], "test")).flatten(0, 1)
        embeds = decoder.embed_tokens(batch.input_ids)
        embeds[0, batch.vision_mask[0]] = features
        outputs: list[Tensor] = []
        keep = partial(keep_output, outputs)
        hooks = [layer.register_forward_hook(keep) for layer in decoder.layers]
        result = decoder(inputs_embeds=embeds, position_ids=rotary_positions(model, batch.positions), output_attentions=True)
        for hook in hooks:
            hook.remove()
        found.append(
            Dense(
                numpy(torch.stack([embeds, *outputs])[:, 0]),
                numpy(torch.stack(result.attentions)[:, 0].mean(1)),
                numpy(model.lm_head(result.last_hidden_state)[0]),
                batch.vision_mask[0].numpy(),
                batch.labels[0].numpy(),
                len(pack[0].images),
            )
        )
    return found


def keep_output(outputs: list[Tensor], module: Any, inputs: Any, output: Tensor) -> None:
    outputs.append(output)


def numpy(values: Tensor) -> Numbers:
    return np.asarray(values.double())


def pooled(grid: Numbers) -> Numbers:
    """Adaptive averages: bin i spans floor(i H / 16) .. ceil((i + 1) H / 16)."""
    height, width = grid.shape
    rows = [(i * height // 16, -(-(i + 1) * height // 16)) for i in range(16)]
    columns = [(i * width // 16, -(-(i + 1) * width // 16)) for i in range(16)]
    return np.array([[grid[a:b, c:d].mean() for c, d in columns] for a, b in rows])


def map_vector(sample: Dense, layer: int, grid: tuple[int, int]) -> Numbers:
    text_rows = sample.attention[layer][~sample.vision][:, sample.vision].mean(0)
    images = text_rows.reshape(sample.num_images, *grid)
    return np.mean([pooled(image) for image in images], 0).ravel()


def test_every_curve_equals_the_dense_computation(case: Case) -> None:
    found = case.measured().curves(case.samples, batch_size=2)
    samples = dense(case)
    grid = token_grid(load_processor(case.checkpoint))
    assert found.depth == len(samples[0].attention)
    for layer in range(found.depth):
        adjacent = [np.mean([cosine(a, b) for a, b in zip(*s.states[layer : layer + 2], strict=True)]) for s in samples]
        across = [cosine(s.states[layer + 1][s.vision].mean(0), s.states[layer + 1][~s.vision].mean(0)) for s in samples]
        similarity = mean_pairwise([map_vector(s, layer, grid) for s in samples])
        hidden = 1 - mean_pairwise([s.states[layer + 1][~s.vision].mean(0) for s in samples])
        assert found.adjacent_cosine[layer] == pytest.approx(np.mean(adjacent), abs=FP32_ATOL)
        assert found.vision_text_cosine[layer] == pytest.approx(np.mean(across), abs=FP32_ATOL)
        assert found.similarity[layer] == pytest.approx(similarity, abs=FP32_ATOL)
        assert found.attention_dispersion[layer] == pytest.approx(1 - similarity, abs=FP32_ATOL)
        assert found.hidden_dispersion[layer] == pytest.approx(hidden, abs=FP32_ATOL)
    assert max(found.similarity) - min(found.similarity) > 1e-3  # the layers differ: the comparison above can fail


def test_label_margins_equal_the_dense_computation(case: Case) -> None:
    found = case.measured().curves(case.samples, batch_size=2)
    logit: list[list[float]] = [[] for _ in range(10)]
    probability: list[list[float]] = [[] for _ in range(10)]
    for sample in dense(case):
        places = np.flatnonzero(sample.labels != IGNORED_LABEL)
        for k, place in enumerate(places):
            scores, label = sample.logits[place - 1], sample.labels[place]
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            logit[10 * k // len(places)].append(scores[label] - np.delete(scores, label).max())
            probability[10 * k // len(places)].append(shares[label] - np.delete(shares, label).max())
    for expected, values in ((logit, found.label_margin_logit), (probability, found.label_margin_probability)):
        assert [value is None for value in values] == [not bin for bin in expected]
        means = [float(np.mean(bin)) for bin in expected if bin]
        assert [value for value in values if value is not None] == pytest.approx(means, abs=10 * FP32_ATOL)


# --- batches and precision ------------------------------------------------------------------------------------------


def as_numbers(curves: Curves) -> list[float]:
    return [math.nan if value is None else value for values in curves.to_json().values() for value in values]


def test_batches_and_order_do_not_matter(case: Case) -> None:
    """One- and two-picture samples of several lengths in one batch: padding reaches no curve."""
    model = case.measured()
    alone = as_numbers(model.curves(case.samples))
    for samples, batch_size in ((case.samples, 4), (case.samples, 100), (case.samples[::-1], 2)):
        together = as_numbers(model.curves(samples, batch_size=batch_size))
        assert together == pytest.approx(alone, abs=10 * FP32_ATOL, nan_ok=True)


def test_bf16_sees_the_same_model(case: Case) -> None:
    """bf16 has 8 bits: a few thousandths a rounding, some layers of them."""
    exact, rough = (case.measured(dtype).curves(case.samples) for dtype in (torch.float32, torch.bfloat16))
    for name in ("adjacent_cosine", "vision_text_cosine", "similarity", "hidden_dispersion"):
        assert getattr(rough, name) == pytest.approx(getattr(exact, name), abs=0.05)
