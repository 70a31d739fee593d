"""The weights and texts of `quantized_peers.py`: SmolLM2 as a checkpoint in fp32, token ids to score and to calibrate with.

`shuffled` orders the channels anew, without changing what the model computes. The file's weights were quantized before (Q4_1: 16
evenly spaced values in each block of 32), and a peer that cuts the same blocks would find them: llama.cpp's Q4_1 gives back the
weights themselves. In a random order a block holds weights of many former blocks, as those of a model that was never quantized.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .peer_row import INPUTS_FILE, LANGUAGE_FOLDER

HELD_OUT, CALIBRATION = slice(0, 120), slice(300, 700)  # question-answer pairs of the records, in the order of the file
TEXT_TOKENS, CALIBRATION_TOKENS = 1500, 8192
DRIVING, OTHER = "driving", "other"


def write_inputs(work: Path, gguf: Path, records: Path, other: Path, shuffle: int | None) -> None:
    """work/inputs.json and the checkpoint work/language, unless they are there; exits where they were made of something else."""
    asked = {"gguf": str(gguf), "records": str(records), "other": str(other), "shuffle": shuffle}
    path = work / INPUTS_FILE
    if path.exists():
        if (before := json.loads(path.read_text(encoding="utf-8"))["asked"]) != asked:
            raise SystemExit(f"{work} was made of {before}, not of {asked}; give another --work")
        return
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = _dequantized(gguf)
    if shuffle is not None:
        shuffle_channels(model, shuffle)
    model.save_pretrained(work / LANGUAGE_FOLDER)
    tokenizer.save_pretrained(work / LANGUAGE_FOLDER)
    pairs = list(question_answers(json.loads(records.read_text(encoding="utf-8"))))
    spelled = {DRIVING: " ".join(pairs[HELD_OUT]), OTHER: other.read_text(encoding="utf-8")}
    texts = {name: tokenizer(text)["input_ids"][:TEXT_TOKENS] for name, text in spelled.items()}
    calibration = tokenizer(" ".join(pairs[CALIBRATION]))["input_ids"][:CALIBRATION_TOKENS]
    path.write_text(
        json.dumps({"asked": asked, "texts": texts, "spelled": spelled, "calibration": calibration}), encoding="utf-8"
    )


def _dequantized(gguf: Path) -> Any:
    """The file's model as one that never was quantized: transformers saves no other."""
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(read.config)(**settings)).float()
    model.load_state_dict(read.state_dict())
    return model


def question_answers(found: Any) -> Iterator[str]:
    """ "Q A" of every pair of DriveLM's nested records."""
    if isinstance(found, dict):
        if "Q" in found and "A" in found:
            yield f"{found['Q']} {found['A']}"
        found = list(found.values())
    if isinstance(found, list):
        for one in found:
            yield from question_answers(one)


def shuffle_channels(model: Any, seed: int) -> None:
    """A llama's residual channels, MLP channels, and channels of each value head, in a random order; its function stays."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    width = config.hidden_size // config.num_attention_heads
    order = torch.randperm(config.hidden_size, generator=generator)
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data[:, order]
    _reorder(model.model.norm, rows=order)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        values = [torch.randperm(width, generator=generator) for _ in range(config.num_key_value_heads)]
        heads = [values[head * len(values) // config.num_attention_heads] for head in range(config.num_attention_heads)]
        middle = torch.randperm(config.intermediate_size, generator=generator)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            _reorder(norm, rows=order)
        for linear in (attention.q_proj, attention.k_proj):
            _reorder(linear, columns=order)
        _reorder(attention.v_proj, rows=_within_heads(values), columns=order)
        _reorder(attention.o_proj, rows=order, columns=_within_heads(heads))
        _reorder(mlp.gate_proj, rows=middle, columns=order)
        _reorder(mlp.up_proj, rows=middle, columns=order)
        _reorder(mlp.down_proj, rows=order, columns=middle)


def _within_heads(orders: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([head * len(order) + order for head, order in enumerate(orders)])


def _reorder(module: Any, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> None:
    weight = module.weight.data if rows is None else module.weight.data[rows]
    module.weight.data = (weight if columns is None else weight[:, columns]).contiguous()
