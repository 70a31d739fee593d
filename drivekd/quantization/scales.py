"""weight_scales.safetensors beside a checkpoint's weights: the scales and forms that its weights were rounded, or trained, with.

One tensor a layer, float32 [out, ceil(in / block)], by its name in the graphs (linears.py); metadata "forms" is JSON,
{layer: [bits, block]}. With it an export takes values = round(weight / scale) and the scales as they are, so that the bundle
computes with exactly the weights that were found by data or trained; a layer that is not in it stays float.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from drivekd.errors import CheckpointError

from .form import WeightForm
from .linears import matmul_name

SCALES_FILE: Final = "weight_scales.safetensors"
BITS: Final = (4, 8)
BLOCKS: Final = (32, 64, 128)


def write_scales(folder: Path, scales: Mapping[str, Tensor], forms: Mapping[str, WeightForm]) -> None:
    """Write the file into a checkpoint's folder."""
    told = json.dumps({layer: [forms[layer].bits, forms[layer].block] for layer in scales})
    tensors = {layer: tensor.detach().float().cpu().contiguous() for layer, tensor in scales.items()}
    (folder / SCALES_FILE).write_bytes(save(tensors, metadata={"forms": told}))


def read_scales(folder: Path) -> tuple[dict[str, Tensor], dict[str, WeightForm]]:
    """Scales and forms by layer; both empty where the checkpoint has none. Raises CheckpointError naming what is wrong."""
    path = folder / SCALES_FILE
    if not path.exists():
        return {}, {}
    try:
        with safe_open(path, "pt") as file:
            forms = {layer: WeightForm(*map(int, pair)) for layer, pair in json.loads(file.metadata()["forms"]).items()}
            scales = {layer: file.get_tensor(layer) for layer in forms}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); train or quantize again") from error
    for layer, tensor in scales.items():
        if forms[layer].bits not in BITS or forms[layer].block not in BLOCKS:
            raise CheckpointError(
                f"{path}: {layer} has {forms[layer].bits} bits in blocks of {forms[layer].block}; this version knows "
                f"{' and '.join(map(str, BITS))} bits, blocks of {', '.join(map(str, BLOCKS))}"
            )
        if tensor.ndim != 2 or not bool(((tensor > 0) & tensor.isfinite()).all()):
            raise CheckpointError(f"{path}: scales of {layer} are {list(tensor.shape)}, or not all finite and above 0")
    return scales, forms


def check_scales(
    folder: Path, scales: Mapping[str, Tensor], forms: Mapping[str, WeightForm], layers: Mapping[str, nn.Module]
) -> None:
    """Whether what `read_scales` found in a folder belongs to a model. layers: its linear layers by name.

    Raises CheckpointError naming the first layer that the model has not, whose scales have another shape than its weight asks
    for, or that has another form than those that are one MatMul with it.
    """
    path = folder / SCALES_FILE
    for layer in scales:
        if layer not in layers:
            raise CheckpointError(f"{path}: the model has no layer {layer}; the file is another checkpoint's")
        weight: Any = layers[layer].weight
        expected = [len(weight), -(-weight[0].numel() // forms[layer].block)]
        if list(scales[layer].shape) != expected:
            raise CheckpointError(
                f"{path}: scales of {layer} are {list(scales[layer].shape)}, its weight needs {expected}; quantize again"
            )
    together: dict[str, list[str]] = {}
    for layer in layers:
        together.setdefault(matmul_name(layer), []).append(layer)
    for name, parts in together.items():
        if len({forms.get(layer) for layer in parts}) > 1:
            raise CheckpointError(f"{path}: {', '.join(parts)} are one MatMul, {name}, but have different forms")
