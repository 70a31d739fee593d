"""Quantized graphs of both families, as they are exported: interfaces, errors, sharing, calibration on records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_fixtures import StudentGraphs
from numpy.typing import NDArray
from tiny_run import TinyRun

from drivekd.errors import DataError
from drivekd.export.graphs.shared_weights import share_weights
from drivekd.export.parity.limits import ATOL
from drivekd.export.parity.probed_graph import prefill_feeds
from drivekd.export.parity.table import relative_error
from drivekd.export.quantize.calibration import Calibrated, calibrate, camera_samples
from drivekd.export.quantize.convert import GraphPlan, convert
from drivekd.export.quantize.half import value_types
from drivekd.export.quantize.matmuls import matmul_names
from drivekd.processor import Processor
from drivekd.runtime.bundle.manifest import GraphSpec

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

DECODERS = ("decoder.gqa", "decoder.concat")
GRAPHS = ("vision", *DECODERS)
PLANS = [
    *(GraphPlan(precision) for precision in ("fp16", "int8", "int4")),
    GraphPlan("int8", int8_inputs=True),
    GraphPlan("int8", int8_inputs=True, activations="fp16"),
    *(GraphPlan(precision, activations="fp16") for precision in ("int8", "int4")),
]
# ||found - fp32|| / ||fp32|| of logits and image_embeds. Measured, the larger of both families: fp16 .001, int8 .034, int4 .22
LARGEST_ERROR = {"fp16": 0.01, "int8": 0.1, "int4": 0.4}
FLOAT32_OPS = {"Softmax", "ReduceMean", "Pow", "Sqrt", "Cos", "Sin"}
FLOAT32_OPS |= {"LayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}


@dataclass(frozen=True)
class Fp32:
    """The float32 graphs of a family, calibrated, and what they answer."""

    folder: Path
    specs: dict[str, GraphSpec]
    processor: Processor
    calibrated: Calibrated
    feeds: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, NDArray[Any]]]


@pytest.fixture(scope="module")
def fp32(family_run: TinyRun, student_graphs: Callable[[TinyRun], StudentGraphs]) -> Fp32:
    torch.set_num_threads(1)
    graphs = student_graphs(family_run)
    source, folder, specs = graphs.source, graphs.folder, graphs.specs
    embedding = source.model.get_input_embeddings().weight.detach().numpy()
    calibrated = calibrate(camera_samples(family_run.folder / "train.json", source.processor, count=3), embedding, specs, folder)
    sample = camera_samples(family_run.folder / "train.json", source.processor, count=1, seed=1)[0]
    embeds = calibrated.feeds[next(name for name in calibrated.feeds if name != "vision")][0]["inputs_embeds"][0]
    feeds: dict[str, dict[str, Any]] = {
        name: prefill_feeds(specs[name], embeds, np.broadcast_to(np.arange(len(embeds)), (source.info.rotary_axes, len(embeds))))
        for name in DECODERS
    }
    feeds["vision"] = {"pixel_values": sample.pixel_values[None]}
    outputs = {name: answer(folder, specs[name], feeds[name]) for name in GRAPHS}
    return Fp32(folder, specs, source.processor, calibrated, feeds, outputs)


def answer(folder: Path, spec: GraphSpec, feeds: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Run a graph; fails when its inputs and outputs are not those of its spec."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(folder / spec.file), options, providers=["CPUExecutionProvider"])
    found = [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
    assert found == [(t.name, f"tensor({t.dtype.replace('float32', 'float')})") for t in (*spec.inputs, *spec.outputs)]
    types = {tensor.name: tensor.dtype for tensor in spec.inputs}
    arrays = session.run(None, {name: np.asarray(array).astype(types[name]) for name, array in feeds.items()})
    return dict(zip([tensor.name for tensor in spec.outputs], arrays, strict=True))


def converted(fp32: Fp32, name: str, plan: GraphPlan, out: Path) -> GraphSpec:
    return convert(fp32.specs[name], fp32.folder, out, plan, calibration=fp32.calibrated.ranges[name])


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_precision_computes_nearly_the_same(fp32: Fp32, name: str, plan: GraphPlan, tmp_path: Path) -> None:
    spec = converted(fp32, name, plan, tmp_path)
    assert (spec.precision, spec.block, spec.excluded) == (plan.precision, 32 if plan.rounds_weights else 0, ())
    kv = {tensor.dtype for tensor in (*spec.inputs, *spec.outputs) if tensor.name.startswith(("past", "present"))}
    assert kv == (set() if name == "vision" else {"float16" if plan.half else "float32"})
    found, expected = answer(tmp_path, spec, fp32.feeds[name]), fp32.outputs[name]
    first = spec.outputs[0].name
    assert 0 < relative_error(expected[first], found[first]) < LARGEST_ERROR[plan.precision]
    for output, array in found.items():
        assert np.abs(array - expected[output]).max() <= spec.atol * max(1.0, np.abs(expected[output]).max())
    assert spec.atol == ATOL[plan.precision]


@pytest.mark.parametrize("plan", [GraphPlan("int8"), GraphPlan("int4"), GraphPlan("int8", int8_inputs=True)], ids=str)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_weight_is_quantized(fp32: Fp32, name: str, plan: GraphPlan, tmp_path: Path) -> None:
    """What stays float32 has no weight of two axes: lm_head, tied to the embedding, is among the quantized."""
    spec = converted(fp32, name, plan, tmp_path)
    assert matmul_names(tmp_path, spec) == []
    names = matmul_names(fp32.folder, fp32.specs[name])
    stored = [value for value in ir.load(tmp_path / spec.file).graph.initializers if value.endswith(f".weight_{plan.precision}")]
    assert "lm_head" in names or name == "vision"
    # int8_inputs puts those of one activation side by side: InternVL's vision has q, k and v apart
    assert len(stored) == len(names) or (plan.int8_inputs and name == "vision" and len(stored) > len(names) / 2)


@pytest.mark.parametrize("name", GRAPHS)
def test_norms_softmax_and_angles_are_float32_islands(fp32: Fp32, name: str, tmp_path: Path) -> None:
    spec = converted(fp32, name, GraphPlan("fp16"), tmp_path)
    graph = ir.load(tmp_path / spec.file).graph
    types = value_types(graph)
    for node in graph:
        floats = {types[value] for value in (*node.inputs, *node.outputs) if value} & {ir.DataType.FLOAT, ir.DataType.FLOAT16}
        if node.op_type in FLOAT32_OPS:
            assert floats == {ir.DataType.FLOAT}, node.name
        elif node.op_type in ("MatMul", "GroupQueryAttention", "Conv", "Sigmoid"):
            assert floats == {ir.DataType.FLOAT16}, node.name


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_layers_outputs_keep_their_names(fp32: Fp32, precision: str, tmp_path: Path) -> None:
    for name in GRAPHS:
        spec = converted(fp32, name, GraphPlan(precision), tmp_path)
        before, after = (
            {value.name for node in ir.load(folder / spec.file).graph for value in node.outputs}
            for folder in (fp32.folder, tmp_path)
        )
        layers = {value for value in before if value and value.endswith(".output")}
        assert layers
        assert layers <= after


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_dialects_share_their_weights(fp32: Fp32, precision: str, tmp_path: Path) -> None:
    specs = [converted(fp32, name, GraphPlan(precision), tmp_path) for name in DECODERS]
    assert [spec.data_file for spec in specs] == ["decoder.gqa.onnx.data", "decoder.concat.onnx.data"]
    alone = (tmp_path / "decoder.concat.onnx.data").stat().st_size
    share_weights(tmp_path, [spec.file for spec in specs], "decoder.data")
    assert (tmp_path / "decoder.data").stat().st_size < 1.05 * alone
    logits = [answer(tmp_path, spec, fp32.feeds[name])["logits"] for spec, name in zip(specs, DECODERS, strict=True)]
    # int8 and int4 round the same weights, but activations that differ by 1e-6 may round to another step of 1/127
    np.testing.assert_allclose(*logits, atol=0.03 * np.abs(logits[0]).max())


def test_excluded_layers_keep_their_weights(fp32: Fp32, tmp_path: Path) -> None:
    plan = GraphPlan("int4", exclude=("layers.1.*", "lm_head"))
    spec = converted(fp32, "decoder.gqa", plan, tmp_path)
    names = matmul_names(fp32.folder, fp32.specs["decoder.gqa"])
    assert spec.excluded == tuple(name for name in names if name.startswith("layers.1.") or name == "lm_head")
    assert matmul_names(tmp_path, spec) == list(spec.excluded)


def test_conversion_is_reproducible(fp32: Fp32, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        converted(fp32, "decoder.concat", GraphPlan("int8"), folder)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["decoder.concat.onnx", "decoder.concat.onnx.data"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_samples_are_seeded_and_carry_the_whole_conversation(fp32: Fp32, family_run: TinyRun) -> None:
    records = family_run.folder / "train.json"
    one, same, other = (camera_samples(records, fp32.processor, count=3, seed=seed) for seed in (0, 0, 5))
    assert [sample.source for sample in one] == [sample.source for sample in same]
    assert [sample.source for sample in one] != [sample.source for sample in other]
    for sample in one:
        prompts = fp32.processor.prompts
        assert sample.image.sum() == prompts.chat.tokens_per_image
        assert sample.position_ids.shape == (fp32.processor.prefix_positions([0]).shape[0], len(sample.input_ids))
        assert (np.diff(sample.position_ids[:, sample.image.nonzero()[0].max() + 1 :]) == 1).all(), "text counts up"
        assert sample.input_ids[-1] == prompts.end_of_turn_id, "the answer is there, with its end"
        record = json.loads(records.read_text())[int(sample.source.rsplit(" ", 1)[1]) - 1]
        text = prompts.decode(sample.input_ids.tolist())
        assert record["messages"][1]["content"] in text


def test_the_decoder_is_calibrated_on_what_the_tower_sees(fp32: Fp32, family_run: TinyRun) -> None:
    samples = camera_samples(family_run.folder / "train.json", fp32.processor, count=3)
    name = next(name for name in fp32.calibrated.feeds if name != "vision")
    for sample, tiles, prompt in zip(samples, fp32.calibrated.feeds["vision"], fp32.calibrated.feeds[name], strict=True):
        np.testing.assert_array_equal(tiles["pixel_values"][0], sample.pixel_values)
        embeds = answer(fp32.folder, fp32.specs["vision"], tiles)["image_embeds"][0]
        # the same graph on another number of threads
        np.testing.assert_allclose(prompt["inputs_embeds"][0][sample.image], embeds, atol=1e-4)
        text = prompt["inputs_embeds"][0][~sample.image]
        assert len(np.unique(text, axis=0)) == len(np.unique(sample.input_ids[~sample.image]))


def test_all_records_are_taken_when_there_are_fewer(fp32: Fp32, family_run: TinyRun) -> None:
    records = family_run.folder / "unlabelled.json"
    assert len(camera_samples(records, fp32.processor, count=1000)) == len(json.loads(records.read_text()))


def test_bad_records_are_refused(fp32: Fp32, family_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(DataError, match=r"empty\.json: the file holds no records"):
        camera_samples(tmp_path / "empty.json", fp32.processor)
    record = json.loads((family_run.folder / "train.json").read_text())[0]
    (tmp_path / "missing.json").write_text(json.dumps([record | {"images": ["gone.png"]}]))
    with pytest.raises(DataError, match=r"missing\.json, record 1: images: no file .*gone\.png"):
        camera_samples(tmp_path / "missing.json", fp32.processor)
