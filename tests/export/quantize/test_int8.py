"""int8 with int8 inputs: bounds, integer kernels, smoothing, and what calibration records and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import quantized_graphs as made
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import drivekd.export.quantize.int8 as int8
from drivekd.errors import ExportError
from drivekd.export.quantize.convert import GraphPlan, apply_plan
from drivekd.export.quantize.ranges import record_ranges

NAMES = ("layers.0.q", "layers.0.k", "layers.0.v")
PLAN = GraphPlan("int8", int8_inputs=True)


def normal(rows: int, columns: int, seed: int = 0) -> made.Floats:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def relative(found: made.Floats, expected: made.Floats) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 5)), elements=st.floats(-1e3, 1e3, width=16)))
@settings(max_examples=100, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_step(weight: made.Floats) -> None:
    found = int8.quantize_columns(weight, int8.TINY)
    assert (found.scales > 0).all()
    assert np.abs(found.values.astype(int)).max() <= 64, "two products with 255 must fit 16 bits"
    # 1e-5: float32 roundings of numbers up to 64 steps
    assert (np.abs(found.values * found.scales - weight) <= found.scales * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("names", [NAMES[:1], NAMES])
def test_matmuls_become_one_integer_kernel(names: tuple[str, ...], tmp_path: Path) -> None:
    weight, x = normal(64, 48), normal(20, 64, 1)
    model = made.product(weight, names)
    assert apply_plan(model, PLAN, {}, made.ranges(x, names)) == ()
    assert [output.name for output in model.graph.outputs] == [f"{name}.value" for name in names]
    for number, found in enumerate(made.run(model, {"x": x})):
        # 1/127 of 3 sigma in x and 1/64 of 2.5 sigma in w, each over the root of 12
        assert relative(found, x @ (weight + number)) < 0.02
    kernels = made.optimized(model, tmp_path)
    assert kernels.count("MatMulIntegerToFloat") == 1
    assert "MatMul" not in kernels


def loud(x: made.Floats) -> made.Floats:
    """Two channels 100 times the others, as language models have them."""
    x = x.copy()
    x[:, [5, 17]] *= 100
    return x


def test_smoothing_saves_quiet_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = normal(64, 48), loud(normal(200, 64, 1))
    weight[[5, 17]] /= 100  # or the loud channels would be all that the output is made of

    def error() -> float:
        model = made.product(weight)
        apply_plan(model, PLAN, {}, made.ranges(x, ("layers.0.mlp.up_proj",)))
        return relative(made.run(model, {"x": x})[0], x @ weight)

    assert error() < 0.05
    monkeypatch.setattr(int8, "WORTH_SMOOTHING", 0.0)
    monkeypatch.setattr(int8, "LARGEST_ERROR", 1.0)
    assert error() > 0.3


def test_matmuls_that_rounded_inputs_would_spoil_stay_float(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where smoothing does not help: language models are known for it, and their bundles were wrong."""
    weight, x = normal(64, 48), loud(normal(200, 64, 1))
    weight[[5, 17]] /= 100
    monkeypatch.setattr(int8, "WORTH_SMOOTHING", 0.0)
    model = made.product(weight)
    assert apply_plan(model, PLAN, {}, made.ranges(x, ("layers.0.mlp.up_proj",))) == ("layers.0.mlp.up_proj",)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert "layers.0.mlp.up_proj stays float: its inputs have channels too large for int8" in caplog.text


def test_the_expected_error_is_the_one_that_is_found() -> None:
    weight, x = normal(64, 48), normal(500, 64, 1)
    found = int8.input_error(made.ranges(x, NAMES).of(NAMES[0]), weight, None)
    step = np.abs(x).max() / 127
    assert found == pytest.approx(relative((np.rint(x / step) * step) @ weight, x @ weight), rel=0.1)  # of random signs


def test_even_channels_are_not_smoothed() -> None:
    weight, x = normal(64, 48), normal(200, 64, 1)
    assert int8.smoothing(made.ranges(x, NAMES).of(NAMES[0]), weight) is None


def test_a_channel_that_was_silent_in_calibration_stays_finite() -> None:
    weight, x = normal(64, 8), loud(normal(50, 64, 1))
    weight[[5, 17]] /= 100
    x[:, 3] = 0
    factors = int8.smoothing(made.ranges(x, NAMES).of(NAMES[0]), weight)
    assert factors is not None
    assert np.isfinite(factors).all()
    assert np.isfinite(1 / factors).all()


def test_a_weight_of_zeros_stays_zero() -> None:
    model = made.product(np.zeros((32, 4), np.float32))
    apply_plan(model, PLAN, {}, made.ranges(np.zeros((3, 32), np.float32), ("layers.0.mlp.up_proj",)))
    assert not made.run(model, {"x": normal(2, 32)})[0].any()


def test_int8_needs_calibration_of_this_graph() -> None:
    with pytest.raises(ExportError, match="int8_inputs need calibration"):
        apply_plan(made.product(normal(32, 4)), PLAN)
    with pytest.raises(ExportError, match=r"layers\.0\.mlp\.up_proj was not calibrated; another graph was \(lm_head, \.\.\.\)"):
        apply_plan(made.product(normal(32, 4)), PLAN, {}, made.ranges(normal(3, 32), ("lm_head",)))


def test_ranges_are_those_of_the_feeds(tmp_path: Path) -> None:
    weight, feeds = normal(32, 4), [{"x": normal(5, 32, seed)} for seed in (1, 2)]
    model = made.product(weight)
    ir.save(model, tmp_path / "decoder.concat.onnx")
    found, outputs = record_ranges(made.spec(model), tmp_path, feeds, ["one", "two"])
    x = np.concatenate([feed["x"] for feed in feeds])
    np.testing.assert_array_equal(found.of("layers.0.mlp.up_proj").largest, np.abs(x).max(axis=0))
    np.testing.assert_allclose(found.of("layers.0.mlp.up_proj").power, (x**2).mean(axis=0), rtol=1e-5)  # order of sums
    np.testing.assert_allclose(outputs[1], feeds[1]["x"] @ weight, atol=1e-4)  # order of sums
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.concat.onnx"]


@pytest.mark.parametrize("where", ["feed", "activation"])
def test_nan_in_calibration_is_refused(where: str, tmp_path: Path) -> None:
    x = made.value("x", "rows", 32)
    root = ir.node("Sqrt", [x], name="root")
    root.outputs[0].name = "root.value"
    product = made.matmul("lm_head", root.outputs[0], normal(32, 4))
    model = made.graph([x], [product.outputs[0]], [root, product])
    ir.save(model, tmp_path / "decoder.concat.onnx")
    feed = np.abs(normal(2, 32))
    feed[1, 7] = np.nan if where == "feed" else -1.0
    with pytest.raises(ExportError, match=r"records\.json, record 2: .* is NaN or infinite, int8 cannot be calibrated on it"):
        record_ranges(made.spec(model), tmp_path, [{"x": feed}], ["records.json, record 2"])
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.concat.onnx"]
