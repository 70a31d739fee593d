"""weight_scales.safetensors beside a checkpoint's weights: the scales and forms that its weights were rounded, or trained, with.

One tensor a layer, float32 [out, ceil(in / block)], by its name in the graphs (linears.py); metadata "forms" is JSON,
{layer: [bits, block]}. With it an export takes values = round(weight / scale) and the scales as they are, so that the bundle
computes with exactly the weights that were found by data or trained; a layer that is not in it stays float.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drivekd.errors import CheckpointError

from .form import WeightForm

SCALES_FILE: Final = "weight_scales.safetensors"


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
        if tensor.ndim != 2 or not bool((tensor > 0).all()):  # NaN is not > 0
            raise CheckpointError(f"{path}: scales of {layer} are {list(tensor.shape)}, or not all above 0")
    return scales, forms
