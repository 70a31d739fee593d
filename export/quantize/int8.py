"""int8: weights per output, activations per tensor; both symmetric, with static scales from calibration (QuantizeLinear and
DequantizeLinear around the MatMul, which onnxruntime and TensorRT turn into integer kernels).

Weights use 7 of their 8 bits (-64..64). CPUs without VNNI add two products of an activation and a weight in 16 bits: 2 * 255 * 64
fits, 2 * 255 * 127 does not and would give other answers there (onnxruntime calls this reduce_range).

One scale for a whole activation is lost on a few channels that are far larger than the rest, as language models have them. Where
it pays, channels are evened out first (SmoothQuant, arXiv 2211.10438, equation 4 with alpha = 1/2):

    x W = (x / s) (s W),  s_j = sqrt(max |x_j| / max |W_j|)

Where even that leaves more than LARGEST_ERROR of an output's root mean square, the MatMul stays float.

onnxruntime's quantize_static smooths with a further package only, and needs 9.1 GB for InternViT-300M, where this needs 4.6.

K inputs, N outputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from drivekd.export.lowering.nodes import NewNodes, initializer, replace

from .matmuls import weight_array
from .ranges import ActivationRange

WEIGHT_LIMIT = 64
ACTIVATION_LIMIT = 127
STRENGTHS = (0.5, 1.0)  # of smoothing; 1 is s_j as above, 0.5 its root
WORTH_SMOOTHING = 0.7  # of the squared error without it; it costs an elementwise product over the activation
LARGEST_ERROR = 0.05  # of an output's root mean square, by rounding the inputs
QUIET_CHANNEL = 1e-3  # of the loudest: calibration may have seen too little of a channel below it

TINY = float(np.finfo(np.float32).tiny)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Int8Weight:
    """values int8 [K, N] in -64..64; scales float32 [N], all > 0."""

    values: NDArray[np.int8]
    scales: Floats


def quantize_columns(weight: Floats, smallest: float) -> Int8Weight:
    """[K, N], finite -> int8 with one scale for each output, at least `smallest`."""
    largest = np.maximum(weight.max(axis=0), -weight.min(axis=0))
    scales = np.maximum(largest / np.float32(WEIGHT_LIMIT), np.float32(smallest))
    return Int8Weight(np.rint(weight / scales).astype(np.int8), scales)


def smoothing(activation: ActivationRange, weight: Floats) -> Floats | None:
    """s [K] for an activation and the weight [K, N] that it meets; None when none of the strengths pays."""
    loudest, rows = (np.maximum(x, x.max() * QUIET_CHANNEL + TINY) for x in (activation.largest, np.abs(weight).max(axis=1)))
    candidates = {power: (loudest / rows) ** np.float32(power / 2) for power in STRENGTHS}
    errors = {power: _rounding_error(activation, weight, factors) for power, factors in candidates.items()}
    best = min(STRENGTHS, key=lambda power: errors[power])
    return candidates[best] if errors[best] < WORTH_SMOOTHING * _rounding_error(activation, weight, None) else None


def _rounding_error(activation: ActivationRange, weight: Floats, factors: Floats | None) -> float:
    """Expected square of what rounding adds to the N outputs together: steps of size d have an error of d² / 12, left out here.

    x' W' = (x + dx) (W + dW): the activation's rounding meets the weight, the weights' rounding meets the activation.
    """
    largest, power = activation.largest, activation.power.astype(np.float64)
    if factors is not None:
        largest, power, weight = largest / factors, power / factors.astype(np.float64) ** 2, weight * factors[:, None]
    columns = np.maximum(weight.max(axis=0), -weight.min(axis=0)).astype(np.float64)
    activation_step = float(largest.max()) / ACTIVATION_LIMIT
    weight_steps = columns / WEIGHT_LIMIT
    return activation_step**2 * float(np.square(weight).sum()) + float((weight_steps**2).sum() * power.sum())


def input_error(activation: ActivationRange, weight: Floats, factors: Floats | None) -> float:
    """Expected root mean square of what rounding the inputs adds to the outputs, as a share of the outputs' own."""
    largest = float((activation.largest if factors is None else activation.largest / factors).max())
    rows = np.square(weight, dtype=np.float64).sum(axis=1)  # [K]
    scaled = rows if factors is None else rows * factors.astype(np.float64) ** 2
    output = float((activation.power * rows).sum())
    return float(np.sqrt((largest / ACTIVATION_LIMIT) ** 2 / 12 * scaled.sum() / output)) if output else 0.0


def use_int8(nodes: list[ir.Node], activation: ActivationRange, smallest: float) -> bool:
    """Quantize the MatMuls of one activation; several become one, cut apart behind it. False: it would cost too much, all stay.

    activation: what calibration found of it. smallest: scale.
    onnxruntime takes an integer kernel where a QuantizeLinear has one reader: three that share it stay float (1.31).
    """
    weights = [weight_array(node) for node in nodes]
    joined = np.concatenate(weights, axis=1) if len(nodes) > 1 else weights[0]
    factors, largest = smoothing(activation, joined), activation.largest
    if input_error(activation, joined, factors) > LARGEST_ERROR:
        return False
    if factors is not None:
        largest, joined = largest / factors, joined * factors[:, None]
    rounded = _activation(nodes[0], max(float(largest.max()) / ACTIVATION_LIMIT, smallest), factors)
    weight = _quantized_weight(nodes[0], quantize_columns(joined, smallest))
    if len(nodes) == 1:
        nodes[0].replace_input_with(0, rounded)
        nodes[0].replace_input_with(1, weight)
        return True
    new = NewNodes(nodes[0], nodes[0].name or "")
    product = new.one("MatMul", [rounded, weight], "joined")
    widths = new.integers(*(weight.shape[1] for weight in weights))
    for node, part in zip(nodes, new.many("Split", [product, widths], "cut", len(nodes), axis=-1), strict=True):
        replace(node, [part])
    return True


def _activation(node: ir.Node, scale: float, factors: Floats | None) -> ir.Value:
    """The node's input, smoothed and rounded to int8."""
    name = node.name or ""
    new, value = NewNodes(node, name), node.inputs[0]
    if factors is not None:
        value = new.one("Mul", [value, _constant(node, 1 / factors, f"{name}.smoothing")], "smooth")
    steps = _constant(node, np.asarray(scale, np.float32), f"{name}.input_scale")
    parts = [steps, _constant(node, np.asarray(0, np.int8), "int8.0")]
    return new.one("DequantizeLinear", [new.one("QuantizeLinear", [value, *parts], "quantize"), *parts], "input")


def _quantized_weight(node: ir.Node, weight: Int8Weight) -> ir.Value:
    name, outputs = node.name or "", len(weight.scales)
    parts = [
        _constant(node, weight.values, f"{name}.weight_int8"),
        _constant(node, weight.scales, f"{name}.weight_scales"),
        _constant(node, np.zeros(outputs, np.int8), f"int8.zeros_{outputs}"),
    ]
    return NewNodes(node, name).one("DequantizeLinear", parts, "dequantize", axis=1)


def _constant(node: ir.Node, array: NDArray[Any], name: str) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    return initializer(node.graph, ir.tensor(array, name=name))
