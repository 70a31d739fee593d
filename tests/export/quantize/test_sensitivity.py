"""Sensitivity finds the layer that is hard to quantize, and suggests no more than that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import quantized_graphs as made

from drivekd.export.parity.table import relative_error
from drivekd.export.quantize.convert import GraphPlan, convert
from drivekd.export.quantize.sensitivity import (
    SensitivityReport,
    SensitivityRow,
    Trials,
    layer_groups,
    sensitivity,
    suggested_exclusions,
)
from drivekd.runtime.bundle.manifest import GraphSpec

WIDTH, LAYERS = 64, 5
SILENT = [0, 32]  # channels, one in each block
FEEDS = [{"x": np.random.default_rng(seed).normal(size=(3, WIDTH)).astype(np.float32)} for seed in (7, 8)]
for feed in FEEDS:
    feed["x"][:, SILENT] = 0


def layered(folder: Path, *, bad: str | None) -> GraphSpec:
    """x + a layer of two MatMuls, five times, into lm_head.

    bad: a MatMul with large weights in each block that drown the others, and do nothing by themselves: their inputs are 0.
    """
    rng = np.random.default_rng(0)
    x = made.value("x", "rows", WIDTH)
    hidden, nodes = x, []
    for layer in range(LAYERS):
        before = hidden
        for part in ("up_proj", "down_proj"):
            array = (rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
            name = f"layers.{layer}.mlp.{part}"
            array[:, SILENT] = 0
            if name == bad:
                array[SILENT] *= 60
            nodes.append(made.matmul(name, hidden, array))
            hidden = nodes[-1].outputs[0]
        nodes.append(ir.node("Add", [before, hidden], name=f"layers.{layer}.add"))
        hidden = nodes[-1].outputs[0]
        hidden.name = f"layers.{layer}.output"
    nodes.append(made.matmul("lm_head", hidden, rng.normal(size=(WIDTH, 40)).astype(np.float32)))
    model = made.graph([x], [nodes[-1].outputs[0]], nodes)
    spec = made.spec(model)
    ir.save(model, folder / spec.file)
    return spec


@pytest.mark.parametrize("part", ["up_proj", "down_proj"])
def test_a_planted_bad_layer_comes_first(part: str, tmp_path: Path) -> None:
    spec = layered(tmp_path, bad=f"layers.3.mlp.{part}")
    report = sensitivity("decoder.concat", Trials(spec, tmp_path, GraphPlan("int4"), FEEDS), num_detailed=2)
    layers = [row.pattern for row in report.rows if row.is_layer]
    assert layers[0] == "layers.3.*"
    assert len(layers) == LAYERS + 1
    assert next(row.pattern for row in report.rows if not row.is_layer) == f"layers.3.mlp.{part}"
    assert [row.error for row in report.rows] == sorted((row.error for row in report.rows), reverse=True)
    assert [path.name for path in tmp_path.iterdir()] == [spec.file]


def test_a_row_says_what_that_layer_costs_alone(tmp_path: Path) -> None:
    spec = layered(tmp_path, bad=None)
    others = tuple(f"layers.{layer}.*" for layer in range(LAYERS) if layer != 2)
    out = tmp_path / "out"
    out.mkdir()
    convert(spec, tmp_path, out, GraphPlan("int4", exclude=(*others, "lm_head")))
    before, after = (ir.load(folder / spec.file) for folder in (tmp_path, out))
    expected = max(relative_error(made.run(before, feed)[0], made.run(after, feed)[0]) for feed in FEEDS)
    report = sensitivity("decoder.concat", Trials(spec, tmp_path, GraphPlan("int4"), FEEDS))
    found = next(row for row in report.rows if row.pattern == "layers.2.*")
    assert found.error == pytest.approx(expected, rel=0.05)  # the report runs without onnxruntime's packed weights
    assert found.share == pytest.approx(2 * WIDTH / (10 * WIDTH + 40))


def test_excluded_matmuls_have_no_row(tmp_path: Path) -> None:
    spec = layered(tmp_path, bad=None)
    report = sensitivity("vision", Trials(spec, tmp_path, GraphPlan("fp16", exclude=("layers.0.*", "lm_head")), FEEDS[:1]))
    assert not any(row.pattern.startswith("layers.0") or row.pattern == "lm_head" for row in report.rows)


def report_of(**errors: float) -> SensitivityReport:
    """Layers of 10 % of the weights each; "3.up" is a MatMul of layer 3 with 4 %."""
    rows = []
    for name, error in errors.items():
        layer, _, part = name.strip("_").partition("_")
        pattern = f"layers.{layer}.{part or '*'}"
        rows.append(SensitivityRow("decoder.gqa", pattern, not part, error, 0.04 if part else 0.1))
    return SensitivityReport("int4", tuple(sorted(rows, key=lambda row: -row.error)))


def test_only_what_stands_out_is_suggested() -> None:
    even = report_of(_0=0.10, _1=0.12, _2=0.09, _3=0.2)
    assert suggested_exclusions(even, 1.0) == []
    odd = report_of(_0=0.10, _1=0.12, _2=0.09, _3=0.9, _4=0.5, _5=0.1, _6=0.1)
    assert suggested_exclusions(odd, 1.0) == ["layers.3.*", "layers.4.*"]
    assert suggested_exclusions(odd, 0.15) == ["layers.3.*"]
    assert suggested_exclusions(odd, 0.05) == []
    assert suggested_exclusions(SensitivityReport("int4", ()), 1.0) == []


def test_one_matmul_that_explains_its_layer_is_suggested_instead() -> None:
    assert suggested_exclusions(report_of(_0=0.1, _1=0.1, _2=0.1, _3=0.9, _3_up=0.8, _3_down=0.2), 1.0) == ["layers.3.up"]
    assert suggested_exclusions(report_of(_0=0.1, _1=0.1, _2=0.1, _3=0.9, _3_up=0.5, _3_down=0.5), 1.0) == ["layers.3.*"]


def test_groups_are_layers() -> None:
    names = ["vision.layers.10.mlp.fc1", "vision.layers.1.mlp.fc1", "vision.layers.1.attn.qkv", "projector.linear_1"]
    assert layer_groups(names) == {
        "vision.layers.10.*": names[:1],
        "vision.layers.1.*": names[1:3],
        "projector.linear_1": names[3:],
    }


def test_infinite_outputs_are_the_worst() -> None:
    one = np.ones(3, np.float32)
    assert relative_error(one, one * np.inf) == np.inf
    assert relative_error(one, one * np.nan) == np.inf
    assert relative_error(one, one * 1.5) == pytest.approx(0.5)
