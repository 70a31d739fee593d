"""Weights of 4 and 8 bits in a graph: blocks along a MatMul's inputs, each with one positive scale; activations stay float.

DequantizeLinear of opset 21, which every engine reads and onnxruntime turns into MatMulNBits when it loads the graph. A block is
whole: where the number of inputs is no multiple of it, weights and activation are padded with zeros (onnxruntime would take a
part of a block, TensorRT refuses it). Scales are stored as float16; in a graph of float32 a Cast stands behind them, which
engines fold.

What the values are is not decided here: drivekd/quantization.

K inputs, N outputs, B weights of a block; K' = K rounded up to whole blocks
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from drivekd.export.lowering.nodes import NewNodes, initializer
from drivekd.quantization.form import Quantized, fits_half, in_blocks


def pack_nibbles(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """ONNX's INT4: two values a byte in the order of memory, the first in the low nibble."""
    flat = values.reshape(-1)
    flat = np.append(flat, np.int8(0)) if len(flat) % 2 else flat
    nibbles = flat.view(np.uint8) & np.uint8(15)
    return np.asarray(nibbles[0::2] | (nibbles[1::2] << np.uint8(4)))


def use_blocks(nodes: Sequence[ir.Node], weight: Quantized, *, half: bool) -> None:
    """MatMul(x, w) -> MatMul(Pad(x), DequantizeLinear(w in few bits, scales)), for the MatMuls of one weight.

    half: the graph becomes float16, its scales with it.
    """
    first, form = nodes[0], weight.form
    name, inputs = first.name or "", weight.values.shape[1]
    rows = in_blocks(weight.values, form.block).flatten(1).T.contiguous().numpy()  # [K', N]
    scales = _scales(first, weight.scales.T.contiguous(), f"{name}.weight_scales", half=half)
    parts = [_values(first, rows, form.bits, f"{name}.weight_int{form.bits}"), scales]
    restored = NewNodes(first, name).one("DequantizeLinear", parts, "dequantize", axis=0, block_size=form.block)
    for node in nodes:
        if len(rows) != inputs:
            node.replace_input_with(0, _padded(node, len(rows) - inputs))
        node.replace_input_with(1, restored)


def _values(node: ir.Node, rows: NDArray[np.int8], bits: int, name: str) -> ir.Value:
    if bits == 8:
        return _initializer(node, ir.tensor(rows, name=name))
    return _initializer(node, ir.PackedTensor(pack_nibbles(rows), ir.DataType.INT4, shape=rows.shape, name=name))


def _scales(node: ir.Node, scales: torch.Tensor, name: str, *, half: bool) -> ir.Value:
    """[K' / B, N] as float32."""
    if half or not fits_half(scales):
        return _initializer(node, ir.tensor(scales.numpy(), name=name))
    stored = _initializer(node, ir.tensor(scales.half().numpy(), name=name))
    return NewNodes(node, node.name or "").one("Cast", [stored], "scales", to=ir.DataType.FLOAT.value)


def _padded(node: ir.Node, count: int) -> ir.Value:
    new = NewNodes(node, node.name or "")
    return new.one("Pad", [node.inputs[0], new.integers(0, count), None, new.integers(-1)], "pad")


def _initializer(node: ir.Node, tensor: ir.TensorProtocol) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    return initializer(node.graph, tensor)
