"""int4: the weights of a MatMul in blocks along its inputs, each block with one positive scale; activations stay float.

    scale = max(max(w) / 7.5, -min(w) / 8.5),  value = round(w / scale) in -8..7,  |w - scale value| <= scale / 2

The smallest scale for which that bound holds. onnxruntime's own quantizer (MatMulNBitsQuantizer) divides the value of largest
magnitude by -8, which rounds normal weights 5 % better, but its scales may be negative: TensorRT's parser refuses those.

Two forms. "qdq": DequantizeLinear of opset 21, which every engine reads and onnxruntime turns into MatMulNBits when it loads the
graph; "matmulnbits": that operator itself. A block is whole: where the number of inputs is no multiple of it, "qdq" pads weights
and activation with zeros (onnxruntime would take a part of a block, TensorRT refuses it).

K inputs, N outputs, B weights of a block; K' = K rounded up to whole blocks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from drivekd.export.lowering.nodes import NewNodes, initializer, replace

from .matmuls import weight_array

LOW, HIGH = -8, 7
# Scales are normal numbers of the type that they are stored in: TensorRT takes none that is 0
SMALLEST_SCALE = {"fp32": float(np.finfo(np.float32).tiny), "fp16": float(np.finfo(np.float16).tiny)}
CHUNK_VALUES = 1 << 18  # of float32: 1 MB, which stays in a core's cache over the five steps
ACCURACY_LEVEL = 4  # onnxruntime: activations as int8 per block and row, the fastest on CPUs; what it gives "qdq" by itself


@dataclass(frozen=True)
class Int4Weight:
    """values int8 [K', N] in -8..7, 0 behind K; scales float32 [K' / B, N], all > 0."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


def quantize_blocks(weight: NDArray[np.float32], block: int, smallest: float = SMALLEST_SCALE["fp32"]) -> Int4Weight:
    """[K, N], finite -> its blocks of `block` rows. smallest: scale."""
    inputs, outputs = weight.shape
    blocks = -(-inputs // block)
    values = np.zeros((blocks, block, outputs), np.int8)
    scales = np.empty((blocks, outputs), np.float32)
    step = max(1, CHUNK_VALUES // (block * outputs))
    for start in range(0, blocks, step):
        rows = weight[start * block : (start + step) * block]
        whole = np.pad(rows, ((0, -len(rows) % block), (0, 0))).reshape(-1, block, outputs)
        scales[start : start + step] = block_scales(whole, 1, smallest)
        values[start : start + step] = rounded(whole, scales[start : start + step, None])
    return Int4Weight(values.reshape(blocks * block, outputs), scales)


def block_scales(blocks: NDArray[np.float32], axis: int, smallest: float) -> NDArray[np.float32]:
    """The scale of each block, at least `smallest`: a block of zeros has one, too."""
    scales = np.maximum(blocks.max(axis) / np.float32(HIGH + 0.5), blocks.min(axis) / np.float32(LOW - 0.5))
    return np.asarray(np.maximum(scales, np.float32(smallest)))


def rounded(values: NDArray[np.float32], scales: NDArray[Any]) -> NDArray[np.int8]:
    """values / scales as whole numbers in -8..7."""
    return np.asarray(np.clip(np.rint(values / scales), LOW, HIGH), np.int8)


def dequantized(weight: Int4Weight, inputs: int) -> NDArray[np.float32]:
    """The float32 weight [K, N] that is computed with."""
    block = len(weight.values) // len(weight.scales)
    return np.asarray(weight.values * np.repeat(weight.scales, block, axis=0), np.float32)[:inputs]


def pack_rows(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """ONNX's INT4: two values a byte in the order of memory, the first in the low nibble."""
    flat = values.reshape(-1)
    flat = np.append(flat, np.int8(0)) if len(flat) % 2 else flat
    nibbles = flat.view(np.uint8) & np.uint8(15)
    return np.asarray(nibbles[0::2] | (nibbles[1::2] << np.uint8(4)))


def pack_columns(values: NDArray[np.int8], block: int) -> NDArray[np.uint8]:
    """MatMulNBits' layout [N, K' / B, B / 2]: the inputs of an output in order, value + 8, the first in the low nibble."""
    columns = np.ascontiguousarray(values.T).astype(np.uint8) + np.uint8(-LOW)  # [N, K'], wraps round to value + 8
    pairs = columns.reshape(values.shape[1], -1, block)
    return np.asarray(pairs[..., 0::2] | (pairs[..., 1::2] << np.uint8(4)))


def use_dequantized(nodes: list[ir.Node], block: int, smallest: float) -> None:
    """Form "qdq" for the MatMuls of one weight: MatMul(x, w) -> MatMul(Pad(x), DequantizeLinear(w int4, scales))."""
    first, source = nodes[0], weight_array(nodes[0])
    inputs, name = len(source), first.name or ""
    weight = quantize_blocks(source, block, smallest)
    new = NewNodes(first, name)
    packed = ir.PackedTensor(pack_rows(weight.values), ir.DataType.INT4, shape=weight.values.shape, name=f"{name}.weight_int4")
    parts = [_initializer(first, packed), _initializer(first, ir.tensor(weight.scales, name=f"{name}.weight_scales"))]
    restored = new.one("DequantizeLinear", parts, "dequantize", axis=0, block_size=block)
    for node in nodes:
        if len(weight.values) != inputs:
            node.replace_input_with(0, _padded(node, len(weight.values) - inputs))
        node.replace_input_with(1, restored)


def use_matmulnbits(nodes: list[ir.Node], block: int, smallest: float) -> None:
    """Form "matmulnbits" for the MatMuls of one weight."""
    inputs, outputs = weight_array(nodes[0]).shape
    name, weight = nodes[0].name or "", quantize_blocks(weight_array(nodes[0]), block, smallest)
    packed = ir.tensor(pack_columns(weight.values, block), name=f"{name}.weight_int4")
    scales = ir.tensor(np.ascontiguousarray(weight.scales.T).reshape(-1), name=f"{name}.weight_scales")
    sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": ACCURACY_LEVEL}
    for node in nodes:
        parts = [node.inputs[0], _initializer(node, packed), _initializer(node, scales)]
        product = NewNodes(node, "").one("MatMulNBits", parts, node.name or "", domain="com.microsoft", **sizes)
        replace(node, [product])


def _padded(node: ir.Node, count: int) -> ir.Value:
    new = NewNodes(node, node.name or "")
    return new.one("Pad", [node.inputs[0], new.integers(0, count), None, new.integers(-1)], "pad")


def _initializer(node: ir.Node, tensor: ir.TensorProtocol) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    return initializer(node.graph, tensor)
