"""What `peer_llama.py` quantizes: the checkpoint as a GGUF file in fp32, and how large each linear's inputs are (importance).

The importance is that of llama.cpp's own `imatrix` tool: the mean square of each input channel over the calibration tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from .peer_llama import IMPORTANCE_FILE, WEIGHTS_FILE
from .peer_row import Inputs
from .peer_torch import language_model, linears_of

# Names of a layer's parameters in the checkpoint -> in GGUF
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
WRITTEN_BY_THE_WRITER = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def write_llama_inputs(work: Path, gguf: Path, inputs: Inputs) -> None:
    """work/language.gguf and work/importance.npz, unless they are there. gguf: the file that the checkpoint came from."""
    if (work / IMPORTANCE_FILE).exists():
        return
    model = language_model(work)
    _write_gguf(work / WEIGHTS_FILE, gguf, model)
    np.savez(work / IMPORTANCE_FILE, **_importance(model, inputs))  # type: ignore[arg-type]  # numpy 2.4's stub: allow_pickle


def gguf_name(name: str) -> str:
    """Of a parameter "model.layers.3.mlp.up_proj.weight", or of a module "layers.3.mlp.up_proj"."""
    if name in NAMES:
        return NAMES[name]
    number, _, rest = name.removeprefix("model.").removeprefix("layers.").partition(".")
    return f"blk.{number}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def rotary_rows(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection as llama.cpp turns them: pairs of neighbours instead of halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _write_gguf(path: Path, source: Path, model: Any) -> None:
    reader, writer = GGUFReader(source), GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(WRITTEN_BY_THE_WRITER):
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    writer.add_file_type(0)  # all fp32
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        turned = next((count for part, count in heads.items() if part in name), None)
        writer.add_tensor(gguf_name(name), rotary_rows(weight, turned) if turned else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def _importance(model: Any, inputs: Inputs) -> dict[str, NDArray[np.float32]]:
    """By tensor of the GGUF file, [K]."""
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, states: torch.Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(())) + states.flatten(0, -2).double().square().sum(0)

    for name, module in linears_of(model).items():
        module.register_forward_pre_hook(lambda _, args, name=gguf_name(name): add(name, args[0]))
    windows = inputs.windows()
    for window in windows:
        model(torch.tensor([window]))
    count = sum(map(len, windows))
    return {name: (total / count).float().numpy() for name, total in sums.items()}
