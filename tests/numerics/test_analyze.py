"""`drivekd analyze`: every curve equals a slow dense computation, sums do not depend on batches, picks follow their rules.

L layers, S positions of one sample, D width
"""

from __future__ import annotations

import json
import math
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import QUESTIONS, TinyRun
from torch import Tensor

from drivekd.analyze import analyze
from drivekd.analyze.curves import Curves, CurveSums
from drivekd.analyze.measurement import MeasuredModel, token_grid
from drivekd.analyze.picks import first_quarter_peak, last_local_peak, longest_run, pick, pick_signal, spans
from drivekd.analyze.plots import PLOTS
from drivekd.analyze.run import SAMPLES_PER_CAPABILITY, choose, measure
from drivekd.analyze.statistics import PairwiseCosine, answer_bins, attention_vectors, label_margins, masked_mean
from drivekd.data.batch import IGNORED_LABEL, Collator
from drivekd.data.packs import single_packs
from drivekd.data.readers import read_samples
from drivekd.data.sample import CAPABILITIES, Capability, Sample
from drivekd.distill.layer_choices import signal_config
from drivekd.distill.signals import signal_for
from drivekd.errors import CheckpointError, ConfigError, UsageError
from drivekd.models import encode_images, language_model, load_model, rotary_positions
from drivekd.models.tiny import QWEN_SPECIAL_TOKENS, TinySize, build_tiny_qwen, train_tokenizer, write_checkpoint
from drivekd.processor import load_processor

pytestmark = pytest.mark.usefixtures("one_thread")

FP32_ATOL = 2e-5  # two ways of computing in fp32, values of about 1; margins of several logits get ten times that
CPU = torch.device("cpu")
Numbers = NDArray[np.float64]


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


def write_qwen(folder: Path) -> None:
    """3 x 4 vision tokens an image: not square, and neither side divides 16 evenly for 3."""
    tokenizer = train_tokenizer([*QUESTIONS.values()] * 20, [], 400, special_tokens=QWEN_SPECIAL_TOKENS)
    size = TinySize(vision_layers=2, vision_width=32, language_layers=4, language_width=64)
    model = build_tiny_qwen(size, tokenizer, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, attention is uniform and all samples are alike
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    write_checkpoint(folder, model, tokenizer)


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


def cosine(a: Numbers, b: Numbers) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def mean_pairwise(vectors: list[Numbers]) -> float:
    return float(np.mean([cosine(a, b) for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j]))


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


# --- sums -----------------------------------------------------------------------------------------------------------


def as_numbers(curves: Curves) -> list[float]:
    return [math.nan if value is None else value for values in curves.to_json().values() for value in values]


def test_batches_and_order_do_not_matter(case: Case) -> None:
    """One- and two-picture samples of several lengths in one batch: padding reaches no curve."""
    model = case.measured()
    alone = as_numbers(model.curves(case.samples))
    for samples, batch_size in ((case.samples, 4), (case.samples, 100), (case.samples[::-1], 2)):
        together = as_numbers(model.curves(samples, batch_size=batch_size))
        assert together == pytest.approx(alone, abs=10 * FP32_ATOL, nan_ok=True)


def test_sums_do_not_grow_with_samples() -> None:
    def held(num_samples: int) -> int:
        sums = CurveSums(3)
        for index in range(num_samples):
            sums.add_layers(torch.rand(1, 3), torch.rand(1, 3), torch.rand(1, 3, 8), torch.rand(1, 3, 256))
            sums.add_margins(torch.rand(2, 2), torch.tensor([0, index % 10]))
        return sum(value.numel() for part in (sums, sums._attention, sums._hidden) for value in tensors(part))

    assert held(1) == held(50)


def tensors(part: object) -> list[Tensor]:
    values = vars(part).values()
    assert not any(isinstance(value, list | dict) for value in values)  # nothing hides in a collection
    return [value for value in values if isinstance(value, Tensor)]


@pytest.mark.parametrize("seed", range(20))
def test_the_running_sum_gives_the_mean_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, layers, width = rng.integers(2, 30), rng.integers(1, 5), rng.integers(1, 40)
    vectors = rng.normal(rng.normal(), 1, (count, layers, width)) * rng.uniform(0.01, 100, (count, 1, 1))
    sums = PairwiseCosine()
    for part in np.array_split(vectors, rng.integers(1, count + 1)):
        sums.add(torch.from_numpy(part))
    expected = [mean_pairwise(list(vectors[:, layer])) for layer in range(layers)]
    assert sums.mean() == pytest.approx(expected, abs=1e-12)  # both float64


@pytest.mark.parametrize(
    ("vectors", "expected"), [([[1, 2], [2, 4], [5, 10]], 1), ([[1, 0], [0, 3]], 0), ([[1, 0], [-2, 0]], -1)]
)
def test_cosines_of_known_vectors(vectors: list[list[float]], expected: float) -> None:
    sums = PairwiseCosine()
    sums.add(torch.tensor(vectors)[:, None])
    assert sums.mean() == pytest.approx([expected], abs=1e-12)


def test_one_sample_has_no_pair() -> None:
    sums = PairwiseCosine()
    assert sums.mean() == ()
    sums.add(torch.rand(1, 4, 3))
    assert sums.mean() == ()


# --- what is measured -----------------------------------------------------------------------------------------------


def test_a_16_by_16_image_is_taken_as_it_is() -> None:
    rows = torch.rand(1, 3, 256)
    vector = attention_vectors(rows, torch.ones(1, 3, dtype=torch.bool), [1], (16, 16))
    torch.testing.assert_close(vector, rows.mean(1))


def test_images_are_averaged_and_padding_counts_for_nothing() -> None:
    """A sample with one image beside one with two, and a padded row: what lies in the padding must not show."""
    images = torch.rand(2, 4)
    rows = torch.full((2, 3, 8), 7.0)
    rows[0, :2, :4] = images[0]
    rows[1, :2] = images.flatten()
    mask = torch.tensor([[True, True, False], [True, True, False]])
    one, two = attention_vectors(rows, mask, [1, 2], (2, 2))
    quarters = images.view(2, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2).flatten(1)  # 2 x 2 -> 16 x 16
    torch.testing.assert_close(one, quarters[0])
    torch.testing.assert_close(two, quarters.mean(0))


def test_margins_by_hand() -> None:
    logits = torch.tensor([[2.0, 5.0, 1.0], [2.0, 5.0, 1.0], [0.0, 0.0, -torch.inf]])
    margins = label_margins(logits, torch.tensor([1, 0, 0]))
    share = torch.tensor([2.0, 5.0, 1.0]).softmax(0)
    torch.testing.assert_close(margins[:, 0], torch.tensor([3.0, -3.0, 0.0]))
    torch.testing.assert_close(margins[:, 1], torch.tensor([1.0, -1.0, 0.0]) * (share[1] - share[0]))


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(1, [0]), (3, [0, 3, 6]), (10, list(range(10))), (12, [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9])],
)
def test_bins_of_an_answer(num_tokens: int, expected: list[int]) -> None:
    answer = torch.zeros(1, 20, dtype=torch.bool)
    answer[0, 5 : 5 + num_tokens] = True
    assert answer_bins(answer).tolist() == expected


def test_autocast_does_not_reach_the_measuring() -> None:
    values, mask = torch.randn(2, 9, 8), torch.rand(2, 9) > 0.3
    expected = masked_mean(values, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masked_mean(values, mask), expected)


def test_bf16_sees_the_same_model(case: Case) -> None:
    """bf16 has 8 bits: a few thousandths a rounding, some layers of them."""
    exact, rough = (case.measured(dtype).curves(case.samples) for dtype in (torch.float32, torch.bfloat16))
    for name in ("adjacent_cosine", "vision_text_cosine", "similarity", "hidden_dispersion"):
        assert getattr(rough, name) == pytest.approx(getattr(exact, name), abs=0.05)


# --- picks ----------------------------------------------------------------------------------------------------------


def test_curves_like_the_papers_give_the_papers_layers() -> None:
    """The values that the paper's figure shows on InternVL3-8B, 28 layers: perception 0, planning -2, reasoning 0..-2."""
    adjacent = [0.63, *np.linspace(0.86, 0.96, 26), 0.39]
    similarity = [0.973, *np.linspace(0.95, 0.80, 25), 0.885, 0.85]
    assert longest_run(adjacent).layers == tuple(range(27))
    assert first_quarter_peak(similarity).layers == (0,)
    assert last_local_peak(similarity).layers == (26,)


@pytest.mark.parametrize(
    ("similarity", "layer", "words"),
    [
        ([0.1, 0.9, 0.2, 0.3, 1.0, 1.0, 1.0, 1.0], 1, "first quarter's (0-1) highest similarity, 0.900"),
        ([0.1, 0.9, 0.2, 0.3, 0.2, 0.2, 0.2], 0, "(0) highest"),  # 7 // 4 = 1 layer
        ([0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 0, "0.500"),  # equal: the first
        ([0.4], 0, "0.400"),
    ],
)
def test_perception_is_the_first_quarters_peak(similarity: list[float], layer: int, words: str) -> None:
    found = first_quarter_peak(similarity)
    assert found.layers == (layer,)
    assert words in found.reason


@pytest.mark.parametrize(
    ("similarity", "layer", "words"),
    [
        ([0.1, 0.5, 0.2, 0.6, 0.3, 0.9], 3, "0.600 between 0.200 and 0.300"),
        ([0.9, 0.5, 0.6, 0.55], 2, "0.600 between 0.500 and 0.550"),
        ([0.1, 0.5, 0.2, 0.3, 0.9], 1, "layer 1"),  # the final layer is the highest, and no peak before it
        ([0.9, 0.8, 0.7, 0.6], 2, "as in the paper, since no layer's similarity is above both"),
        ([0.1, 0.5, 0.5, 0.2], 2, "as in the paper"),  # a plateau is no peak
        ([0.1, 0.5], 0, "as in the paper"),
        ([0.1], 0, "as in the paper"),
    ],
)
def test_planning_is_the_last_local_peak(similarity: list[float], layer: int, words: str) -> None:
    found = last_local_peak(similarity)
    assert found.layers == (layer,)
    assert words in found.reason


@pytest.mark.parametrize(
    ("adjacent", "layers", "words"),
    [
        ([0.1, 0.9, 0.1, 0.9, 0.95, 0.1], (2, 3, 4), "0.900 to 0.950"),
        ([0.99, 0.1, 0.9], (1, 2), "layers 1-2"),
        ([0.1, 0.9, 0.1, 0.9], (0, 1), "0.900"),  # two of a length: the first
        ([0.1, 0.9, 0.85, 0.9, 0.9], (2, 3, 4), "above 0.85"),  # .85 itself is not above
        ([0.1, 0.9, 0.9], (0, 1, 2), "layers 0-2"),  # a run may reach the final layer
        (
            [0.99, 0.2, 0.3, 0.4],
            (0, 1, 2),
            "as in the paper, since no two layers have an adjacent cosine above 0.85; the highest is 0.400",
        ),
        ([0.99], (0,), "as in the paper"),
    ],
)
def test_reasoning_is_the_longest_run(adjacent: list[float], layers: tuple[int, ...], words: str) -> None:
    found = longest_run(adjacent)
    assert found.layers == layers
    assert words in found.reason


CURVES = Curves(
    adjacent_cosine=(0.5, 0.9, 0.9, 0.4),
    vision_text_cosine=(0.1, 0.2, 0.3, 0.4),
    similarity=(0.9, 0.7, 0.8, 0.6),
    attention_dispersion=(0.1, 0.3, 0.2, 0.4),
    hidden_dispersion=(0.05, 0.4, 0.3, 0.1),
    label_margin_logit=(None,) * 10,
    label_margin_probability=(None,) * 10,
)


@pytest.mark.parametrize(("layers", "signal"), [((0,), "hidden"), ((2,), "attention"), ((0, 1), "attention")])
def test_the_signal_is_the_less_dispersed_at_the_picked_layers(layers: tuple[int, ...], signal: str) -> None:
    assert pick_signal(CURVES, layers, "teacher")[0] == signal


def test_equal_dispersion_keeps_the_papers_signal() -> None:
    equal = replace(CURVES, hidden_dispersion=CURVES.attention_dispersion)
    assert pick_signal(equal, (0, 1), "teacher")[0] == "attention"


def test_the_teacher_decides_the_signal() -> None:
    teacher = replace(CURVES, hidden_dispersion=(0.5, 0.5, 0.5, 0.5))
    assert pick("perception", CURVES, None).signal == "hidden"
    found = pick("perception", CURVES, teacher)
    assert found.signal == "attention"
    assert "the teacher's dispersion there is 0.100 for attention, 0.500 for hidden states" in found.reason


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_without_pairs_the_papers_layers_are_taken_and_it_is_said(capability: Any) -> None:
    found = pick(capability, replace(CURVES, similarity=(), attention_dispersion=(), hidden_dispersion=()), None)
    expected = {"perception": (0,), "reasoning": (0, 1, 2), "planning": (2,)}[capability]
    assert found.student_layers == expected
    assert found.signal == "attention"
    assert "signal attention, the paper's: dispersion needs two samples" in found.reason
    if capability != "reasoning":
        assert "as in the paper, since similarity needs two samples" in found.reason


@pytest.mark.parametrize(("layers", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 5, 7, 8), "0-2, 5, 7-8")])
def test_spans(layers: tuple[int, ...], text: str) -> None:
    assert spans(layers) == text


# --- the whole verb -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Analysed:
    out: Path
    header: list[str]
    rows: list[list[str]]
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads((self.out / "analysis.json").read_text())
        return tree


def analysed(run: TinyRun, out: Path, *overrides: str) -> Analysed:
    config = run.config("teachers.planning=null", *overrides)
    with redirect_stdout(StringIO()) as stdout, redirect_stderr(StringIO()) as stderr:
        header, rows = analyze(config, out)
    assert stdout.getvalue() == ""  # the command line alone prints
    return Analysed(out, header, rows, stderr.getvalue())


@pytest.fixture(scope="module")
def found(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    """Perception and reasoning share a teacher, planning has none."""
    return analysed(tiny_run, tmp_path_factory.mktemp("analysed") / "out")


def test_a_run_writes_what_train_reads(tiny_run: TinyRun, found: Analysed) -> None:
    tree = found.json
    assert set(tree) == {"pair", "capabilities", "curves", "samples"}
    assert tree["pair"]["student"] == {"checkpoint": str(tiny_run.student), "depth": 3}
    teacher = {"checkpoint": str(tiny_run.teacher), "depth": 4}
    assert tree["pair"]["teacher"] == {"perception": teacher, "reasoning": teacher}
    assert tree["samples"] == {name: {"analysed": 6, "available": 6} for name in CAPABILITIES}
    assert list(tree["capabilities"]) == list(CAPABILITIES)
    for name, chosen in tree["capabilities"].items():
        assert set(chosen) == {"student_layers", "teacher_layers", "signal", "reason"}
        assert chosen["student_layers"] != []
        assert (chosen["teacher_layers"] == []) == (name == "planning")
    assert "no teacher" in tree["capabilities"]["planning"]["reason"]


@pytest.mark.parametrize("capability", ["perception", "reasoning"])
def test_train_reads_the_file(found: Analysed, tiny_run: TinyRun, capability: Capability) -> None:
    config = tiny_run.config(f"signals.layers={found.out / 'analysis.json'}").signals
    signal = signal_for(capability, signal_config(capability, config, 3, 4), 3, 4, "window")  # refuses layers that do not exist
    chosen = found.json["capabilities"][capability]
    assert list(signal.student_layers) == chosen["student_layers"]
    assert list(signal.teacher_layers) == chosen["teacher_layers"]
    assert signal.loss == {"attention": "mse", "hidden": "hidden"}[chosen["signal"]]


def test_the_written_curves_are_the_measured_ones(tiny_run: TinyRun, found: Analysed) -> None:
    tree = found.json
    samples = [s for s in read_samples(tiny_run.folder / "train.json") if s.capability == "reasoning"]
    measured = MeasuredModel(tiny_run.teacher, CPU, torch.float32).curves(samples)
    assert tree["curves"]["teacher"]["reasoning"] == measured.to_json()  # JSON keeps every bit of a float
    assert set(tree["curves"]["teacher"]) == {"perception", "reasoning"}
    assert set(tree["curves"]["student"]) == set(CAPABILITIES)
    picked = pick("reasoning", Curves(**{k: tuple(v) for k, v in tree["curves"]["student"]["reasoning"].items()}), measured)
    assert tree["capabilities"]["reasoning"] == picked.to_json()


def test_each_teacher_is_measured_on_its_own_capability(tiny_run: TinyRun) -> None:
    """The student itself teaches reasoning: its curves come twice, and perception's are the other teacher's."""
    config = tiny_run.config("teachers.planning=null", f"teachers.reasoning={tiny_run.student}")
    samples = {name: read_samples(tiny_run.folder / "train.json")[index::3][:2] for index, name in enumerate(CAPABILITIES)}
    measured = measure(config, samples)
    assert measured["teacher"]["reasoning"] == measured["student"]["reasoning"]
    assert {name: curves.depth for name, curves in measured["teacher"].items()} == {"perception": 4, "reasoning": 3}


def test_the_table_plots_and_progress(found: Analysed) -> None:
    assert found.header == ["capability", "student layers", "teacher layers", "signal", "reason"]
    assert [row[0] for row in found.rows] == list(CAPABILITIES)
    assert all(len(row) == len(found.header) for row in found.rows)
    assert found.rows[2][2] == "-"
    assert {path.name for path in found.out.iterdir()} == {"analysis.json", *(plot.file for plot in PLOTS)}
    for plot in PLOTS:
        colours = Image.open(found.out / plot.file).convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 100  # lines of three colours and their shades, not an empty page
    assert "teacher teacher, reasoning: 6 of 6 samples" in found.stderr
    assert "student student, planning: 6 of 6 samples" in found.stderr


def test_without_teachers_the_student_is_analysed(tiny_run: TinyRun, tmp_path: Path) -> None:
    overrides = ("teachers={}", "data.unlabelled=[]", "training.unlabelled_batch_size=0", "data.capabilities=[planning]")
    found = analysed(tiny_run, tmp_path / "out", *overrides)
    assert list(found.json["capabilities"]) == ["planning"]
    assert found.json["pair"]["teacher"] == found.json["curves"]["teacher"] == {}


def test_a_single_record_gets_the_papers_layers(tiny_run: TinyRun, tmp_path: Path) -> None:
    """And a capability without any record is left out with a word, not with made-up layers."""
    (tmp_path / "few.json").write_text(json.dumps(json.loads((tiny_run.folder / "train.json").read_text())[:1]))
    data = (f"data.train=[{tmp_path / 'few.json'}]", f"data.image_root={tiny_run.folder}")
    found = analysed(tiny_run, tmp_path / "out", *data)
    assert list(found.json["capabilities"]) == ["perception"]
    assert found.json["capabilities"]["perception"]["student_layers"] == [0]
    assert "as in the paper, since similarity needs two samples" in found.json["capabilities"]["perception"]["reason"]
    assert found.json["curves"]["student"]["perception"]["similarity"] == []


def test_a_folder_that_holds_something_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not empty"):
        analyze(tiny_run.config(), tmp_path)


def test_another_familys_teacher_is_refused_before_any_work(tiny_run: TinyRun, tmp_path: Path) -> None:
    write_qwen(tmp_path / "qwen")
    with pytest.raises(ConfigError, match=r"teachers.reasoning = .*qwen2_5_vl"):
        analyze(tiny_run.config(f"teachers.reasoning={tmp_path / 'qwen'}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_finite_is_named(tiny_run: TinyRun, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_run.teacher.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "layers.2.mlp.down_proj" in name and "language_model" in name)
    weights[name].fill_(torch.inf)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"broken: adjacent_cosine\[2\] is nan"):
        analyze(tiny_run.config(f"teachers.planning={broken}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_samples_are_drawn_over_the_whole_file() -> None:
    many = [Sample(f"r{i}", "planning", "?", "A", (Path("x.png"),)) for i in range(1000)]
    drawn = choose(many, seed=0)
    numbers = [int(sample.source[1:]) for sample in drawn]
    assert len(set(numbers)) == SAMPLES_PER_CAPABILITY == 64
    assert numbers == sorted(numbers)
    assert all(any(start <= n < start + 250 for n in numbers) for start in range(0, 1000, 250))
    assert choose(many, seed=0) == drawn != choose(many, seed=1)
    assert choose(many[:10], seed=0) == many[:10]
