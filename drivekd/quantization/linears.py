"""The weights of a model that a bundle may hold in fewer bits, under the names that its graphs have for them.

    layers.0.self_attn.q_proj        a linear layer of the decoder; its MatMul is layers.0.self_attn.qkv_proj, three in one
    layers.0.mlp.gate_proj           its MatMul is layers.0.mlp.gate_up_proj
    lm_head                          also where it is tied to the embedding
    vision.layers.0.attention.q_proj, vision.patch_embed (Qwen2.5-VL), projector.linear_1

Names of MatMuls are what `exclude` and other patterns are about: "layers.0.*", "lm_head", "vision.*".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from drivekd.errors import ConfigError

from .form import WeightForm

HEAD = "lm_head"
ADAPTED = ".base_layer"  # of peft: the layer that an adapter is added to
# How torch calls the modules of both families -> how graphs do.
MODULE_NAMES = (
    (r"^model\.language_model\.", ""),
    (r"^model\.vision_tower\.encoder\.layer\.", "vision.layers."),
    (r"^model\.vision_tower\.", "vision."),
    (r"^model\.multi_modal_projector\.", "projector."),
    (r"^model\.visual\.blocks\.", "vision.layers."),
    (r"^model\.visual\.merger\.", "projector."),
    (r"^model\.visual\.patch_embed\.proj$", "vision.patch_embed"),
)
PACKED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
DECODER_LAYER = re.compile(r"layers\.\d+\.")


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every layer whose weight becomes a MatMul's, by its name in the graphs; `weight` [out, in], of a convolution flattened."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if "lora_" in name or not (isinstance(module, nn.Linear) or name.endswith("visual.patch_embed.proj")):
            continue
        found[graph_name(name.removesuffix(ADAPTED))] = module
    return found


def graph_name(module_name: str) -> str:
    """A module's name -> its name in the graphs."""
    for pattern, replacement in MODULE_NAMES:
        module_name = re.sub(pattern, replacement, module_name)
    return module_name


def matmul_name(layer: str) -> str:
    """The MatMul that a linear layer is a part of, or all of."""
    parent, _, last = layer.rpartition(".")
    return f"{parent}.{PACKED[last]}" if last in PACKED and DECODER_LAYER.match(layer) else layer


def is_vision(layer: str) -> bool:
    """Whether it belongs to the vision graph, the projector included."""
    return layer.startswith(("vision.", "projector."))


def matching(patterns: Sequence[str], names: Collection[str]) -> list[str]:
    """Those of the names that match a pattern ("layers.0.*"; * is any text)."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_patterns(key: str, patterns: Sequence[str], names: Collection[str]) -> None:
    """Refuse a pattern of the setting `key` that matches none of the names. Raises ConfigError naming what is near."""
    for pattern in patterns:
        if not matching([pattern], names):
            near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.4)
            meant = f"Did you mean {' or '.join(near)}? " if near else ""
            known = ", ".join(list(names)[:4])
            raise ConfigError(
                f"{key}: {pattern!r} matches no MatMul. {meant}They are called {known} and so on; * stands for any text"
            )


def form_of(
    matmul: str, inputs: int, form: WeightForm, *, exclude: Sequence[str] = (), int8: Sequence[str] = ()
) -> WeightForm | None:
    """Of a MatMul's weight where others have `form`; None: it stays float.

    exclude: patterns of MatMuls that stay float; int8: of those that get 8 bits. One with fewer inputs than a block stays float:
    padding would make it larger, not smaller.
    """
    if inputs < form.block or matching(exclude, [matmul]):
        return None
    return WeightForm(8, form.block) if matching(int8, [matmul]) else form


def forms_of(
    inputs: Mapping[str, int], form: WeightForm, *, exclude: Sequence[str] = (), int8: Sequence[str] = ()
) -> dict[str, WeightForm]:
    """The form of each layer, those that stay float left out. inputs: of each layer, by its name.

    form: of the decoder; the vision graph has 8 bits. exclude, int8: as form_of takes them.
    """
    forms: dict[str, WeightForm] = {}
    for layer, width in inputs.items():
        main = WeightForm(8, form.block) if is_vision(layer) else form
        found = form_of(matmul_name(layer), width, main, exclude=exclude, int8=int8)
        if found is not None:
            forms[layer] = found
    return forms
