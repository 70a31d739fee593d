"""Bisect names the layer that a fault was planted in, and none of a healthy bundle of any precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
from bisect_cases import (
    CONCAT,
    FAULTS,
    GQA,
    VISION,
    Edit,
    change,
    converted,
    edited,
    one_value,
    write_bundle,
    write_qwen_source,
)

from drivekd.export.parity.bisect import STEP, bisect
from drivekd.export.source.layer_values import LAYERS_FILE, layer_values_from_bytes
from drivekd.export.source.source import Source
from drivekd.runtime.bundle.manifest import Manifest
from drivekd.runtime.bundle.reader import Bundle

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    source = write_qwen_source(tmp_path_factory.mktemp("qwen") / "checkpoint")
    return write_bundle(source, tmp_path_factory.mktemp("qwen-bundle"))


def value_name(graph: str, layer: int) -> str:
    return f"vision.layers.{layer}.output" if graph == "vision" else f"layers.{layer}.output"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[0]}-{fault[1]}-{fault[2]}".replace(" ", "-"))
def test_a_planted_fault_is_named(deep: Bundle, fault: tuple[str, int, str, Edit]) -> None:
    graph, layer, _, edit = fault
    report = bisect(edited(deep, graph, edit), threads=1)
    assert report.first is not None
    assert (report.first.graph, report.first.value) == (graph, value_name(graph, layer))
    other = [row for row in report.rows if row.graph != graph]
    assert all(row.verdict == "ok" for row in other), "the other graphs were not touched"
    behind = [row for row in report.rows if row.graph == graph][layer + 1 :]
    assert {row.verdict for row in behind} == {"follows"}
    assert not report.passed
    assert f"{graph}: {value_name(graph, layer)} is the first beyond tolerance" in report.verdict
    assert f"{graph} is fp32, so no rounding explains this" in report.suggestion


def test_the_faults_are_in_twenty_layers() -> None:
    """With test_overflow_in_fp16_is_named_with_its_node's layer 6."""
    layers = {(graph == "vision", layer) for graph, layer, _, _ in FAULTS} | {(False, 6)}
    assert len(layers) == len(FAULTS) + 1 == 20


@pytest.mark.parametrize("family", ["deep", "qwen"])
@pytest.mark.parametrize("precision", STEP)
def test_a_healthy_bundle_names_none(family: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle = request.getfixturevalue(family)
    report = bisect(bundle if precision == "fp32" else converted(bundle, precision, tmp_path), threads=1)
    assert report.passed, report.verdict
    assert report.suggestion == ""
    layers = len(layer_values_from_bytes(bundle.files[LAYERS_FILE], "").vision.layers)
    decoder = bundle.manifest.model.num_layers
    assert len(report.rows) == layers + 1 + 1 + 2 * (decoder + 1)
    worst = max(row.error / STEP[row.precision] for row in report.rows if row.graph != "embedding")
    assert worst > 1e-3, "nothing was compared"


def larger_inside(layer: int, factor: float) -> Edit:
    """The same function in float32: what the MLP makes is larger, and made smaller again."""

    def up_half(weight: np.ndarray) -> np.ndarray:
        gate, up = np.split(weight, 2, axis=1)
        return np.concatenate([gate, up * factor], axis=1)

    def edit(model: onnx.ModelProto) -> None:
        change(f"layers.{layer}.mlp.gate_up_proj.weight", up_half)(model)
        change(f"layers.{layer}.mlp.down_proj.weight", lambda w: w / factor)(model)

    return edit


def test_overflow_in_fp16_is_named_with_its_node(deep: Bundle, tmp_path: Path) -> None:
    """Nothing is wrong but the range: onnxruntime's CPU would not even notice, since it computes fp16 graphs in float32."""
    enlarged = edited(deep, GQA, larger_inside(6, 2.0**17))
    assert bisect(enlarged, threads=1).passed, "in fp32 it is the same function"
    folder = tmp_path / "enlarged"
    folder.mkdir()
    for name, data in enlarged.files.items():
        (folder / name).write_bytes(data)
    half = converted(dataclasses.replace(enlarged, path=folder), "fp16", tmp_path / "half")
    report = bisect(half, threads=1)
    assert report.first is not None
    assert (report.first.graph, report.first.value, report.first.error) == (GQA, "layers.6.output", float("inf"))
    assert report.suggestion.startswith("layer 6 in fp32; node layers.6.mlp.gate_up_proj (MatMul) gives")
    assert report.suggestion.endswith("export again with --set 'exclude=[layers.6.*]'")


def test_a_layer_that_int4_destroys_gets_an_exclusion(deep: Bundle, tmp_path: Path) -> None:
    """One enormous weight leaves nothing of its block's others."""
    name = "layers.7.mlp.down_proj.weight"
    outlier = change(name, lambda w: np.where(np.arange(w.shape[0])[:, None] % 32 == 0, 0, w))
    graphs = edited(deep, CONCAT, outlier)
    expected = bisect(graphs, threads=1)
    assert expected.first is not None
    report = bisect(dataclasses.replace(graphs, manifest=as_precision(graphs.manifest, CONCAT, "int4")), threads=1)
    assert report.passed, "a fault that is smaller than int4's own rounding does not show"
    gone = edited(deep, CONCAT, change(name, lambda w: w * 40))
    report = bisect(dataclasses.replace(gone, manifest=as_precision(gone.manifest, CONCAT, "int4")), threads=1)
    assert report.first is not None
    assert report.first.value == "layers.7.output"
    assert report.suggestion == (
        "layer 7 loses too much in int4; leave it in higher precision: export again with --set 'exclude=[layers.7.*]'"
    )


def as_precision(manifest: Manifest, graph: str, precision: str) -> Manifest:
    spec = dataclasses.replace(manifest.graphs[graph], precision=precision)
    return dataclasses.replace(manifest, graphs={**manifest.graphs, graph: spec})


def test_faults_behind_the_layers_are_named_by_the_output(deep: Bundle) -> None:
    head = bisect(edited(deep, CONCAT, change("lm_head.weight", lambda w: w * 1.01)), threads=1)
    assert head.first is not None
    assert (head.first.graph, head.first.value) == (CONCAT, "logits")
    projector = bisect(edited(deep, VISION, change("projector.linear_1.bias", one_value(0.5))), threads=1)
    assert projector.first is not None
    assert (projector.first.graph, projector.first.value) == (VISION, "image_embeds")


def test_a_wrong_embedding_is_not_the_decoders_fault(deep: Bundle, deep_source: Source) -> None:
    weight = deep_source.model.get_input_embeddings().weight.detach().roll(1, 0).contiguous()
    files = {**deep.files, "embedding.safetensors": safetensors.torch.save({"weight": weight})}
    report = bisect(dataclasses.replace(deep, files=files), threads=1)
    assert report.first is not None
    assert report.first.graph == "embedding"
    assert "does not hold the checkpoint's rows" in report.suggestion
    assert all(row.verdict == "ok" for row in report.rows if row.graph != "embedding")


def test_faults_in_two_graphs_name_the_first(deep: Bundle) -> None:
    both = edited(edited(deep, CONCAT, FAULTS[10][3]), VISION, FAULTS[2][3])
    report = bisect(both, threads=1)
    assert report.first is not None
    assert (report.first.graph, report.first.value) == (VISION, "vision.layers.2.output")
    assert [row.value for row in report.rows if row.verdict == "BEYOND"] == ["vision.layers.2.output", "layers.3.output"]
