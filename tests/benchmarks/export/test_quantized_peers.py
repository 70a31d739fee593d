"""The pure parts of `quantized_peers.py`: which text is read, what is counted, what two models' answers are compared by."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.export.peer_inputs import question_answers, shuffle_channels
from benchmarks.export.peer_llama_inputs import gguf_name, rotary_rows
from benchmarks.export.peer_row import Inputs, Stored, blocks, inputs_of, scored
from benchmarks.export.quantized_peers import compared


def test_pairs_are_read_in_the_order_of_the_file() -> None:
    records = {"scene": {"frames": {"one": {"QA": {"perception": [{"Q": "Who?", "A": "A car.", "tag": [1]}], "behavior": []}}}}}
    assert list(question_answers([records, {"Q": "Where?", "A": "Left."}])) == ["Who? A car.", "Where? Left."]


@pytest.mark.parametrize(
    ("stored", "bits", "bits_fp16_scales"),
    [
        (blocks(64, 4, 32, scale_bits=16), 4.5, 4.5),
        (blocks(64, 4, 32, scale_bits=32), 5.0, 4.5),
        (blocks(64, 4, 32, scale_bits=16, zero_bits=4), 4.625, 4.625),
        (blocks(64, 8, 32, scale_bits=16) + blocks(64, 4, 32, scale_bits=16), 6.5, 6.5),
    ],
)
def test_everything_that_is_stored_counts(stored: Stored, bits: float, bits_fp16_scales: float) -> None:
    assert (stored.bits(), stored.bits(16)) == (bits, bits_fp16_scales)


def test_windows_are_whole() -> None:
    inputs = Inputs({}, {}, list(range(2500)))
    assert [(window[0], len(window)) for window in inputs.windows()] == [(0, 1024), (1024, 1024)]


def test_uniform_logits_have_the_perplexity_of_the_vocabulary() -> None:
    inputs = Inputs({"text": [3, 1, 4]}, {}, [])
    scores = scored(lambda ids: np.zeros((len(ids), 50), np.float32), inputs)["text"]
    assert math.exp(scores["nll"]) == pytest.approx(50)
    assert len(scores["tokens"]) == 2


def test_a_row_is_compared_with_the_reference() -> None:
    size = {"linears": vars(blocks(64, 4, 32, scale_bits=16)), "head": vars(blocks(64, 8, 32, scale_bits=16)), "file_mb": None}
    reference = {"scores": {"text": {"nll": 1.0, "tokens": [1, 2, 3, 4]}}}
    found = compared({"size": size, "scores": {"text": {"nll": 1.0 + math.log(2), "tokens": [1, 2, 3, 9]}}}, reference)
    assert found["bits_with_head"] == 6.5
    assert found["texts"]["text"]["times"] == pytest.approx(2)
    assert found["texts"]["text"]["same"] == 0.75


def test_names_and_rotary_rows_of_gguf() -> None:
    assert gguf_name("model.layers.3.mlp.up_proj.weight") == gguf_name("layers.3.mlp.up_proj") == "blk.3.ffn_up.weight"
    rows = np.arange(8, dtype=np.float32)[:, None]  # two heads of four rows
    assert rotary_rows(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.numerics
def test_shuffled_channels_compute_the_same() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 50}
    config = LlamaConfig(hidden_size=48, intermediate_size=80, tie_word_embeddings=True, **sizes)
    model, ids = LlamaForCausalLM(config).eval(), torch.arange(10)[None]
    for norm in (module for name, module in model.named_modules() if name.endswith("norm")):
        torch.nn.init.normal_(norm.weight)  # ones would hide a norm that was left out
    with torch.no_grad():
        before, weights = model(ids).logits, model.model.layers[1].self_attn.o_proj.weight.clone()
        shuffle_channels(model, seed=0)
        torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-4)  # sums in another order
    assert not torch.equal(weights, model.model.layers[1].self_attn.o_proj.weight)


def test_inputs_are_read_back(tmp_path: Any) -> None:
    (tmp_path / "inputs.json").write_text(
        json.dumps({"texts": {"a": [1]}, "spelled": {"a": "b"}, "calibration": [2], "asked": {}})
    )
    assert inputs_of(tmp_path) == Inputs({"a": [1]}, {"a": "b"}, [2])
