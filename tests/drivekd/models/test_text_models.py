"""InternVL over other text models than Qwen2: which are taken, and which are refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_fixtures import Run
from tiny_run import TinyRun, make_tokenizer
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from drivekd.errors import CheckpointError
from drivekd.hf_checkpoint import Checkpoint
from drivekd.models import FAMILIES, language_shape, load_model
from drivekd.models.decoder import run_decoder
from drivekd.models.text_models import _REASONS
from drivekd.models.tiny import TinySize, build_tiny

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

LENGTH = 12


def hidden_states(model: Any, mask: Tensor | None, positions: Tensor) -> Tensor:
    ids = torch.arange(20, 20 + LENGTH)[None]
    nothing = torch.zeros(0, model.config.text_config.hidden_size)
    with torch.no_grad():
        return run_decoder(model, ids, torch.zeros_like(ids, dtype=torch.bool), nothing, mask, positions)


# --- taken ----------------------------------------------------------------------------------------------------------


def test_no_mask_is_guessed_from_positions(kind_run: TinyRun) -> None:
    """transformers takes positions that start anew for packed sequences; ours start anew where another question does."""
    model = load_model(kind_run.student).eval()
    axes = FAMILIES[model.config.model_type].rotary_axes
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7]).expand(axes, 1, LENGTH)
    causal = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    found, expected = (hidden_states(model, mask, positions) for mask in (None, causal))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # fp32 behind three layers, values of 3
    blind = causal.clone()
    blind[..., 7:, 2:7] = False
    assert float((hidden_states(model, blind, positions) - expected).abs().max()) > 1e-2


def test_a_mistral_without_a_window_is_a_llama() -> None:
    tokenizer = make_tokenizer()
    llama, mistral = (
        build_tiny(TinySize(1, 32, 2, 32, image_size_px=56, text_model=name), tokenizer, seed=0) for name in ("llama", "mistral")
    )
    mistral.load_state_dict(llama.state_dict())
    positions = torch.arange(LENGTH)[None, None]
    assert torch.equal(hidden_states(mistral, None, positions), hidden_states(llama, None, positions))


# --- refused --------------------------------------------------------------------------------------------------------


def with_text(run: TinyRun, tmp_path: Path, **changes: Any) -> TinyRun:
    """A copy of a run whose student says something else of its text model."""
    copy = TinyRun(Path(shutil.copytree(run.folder, tmp_path / "copy")))
    config = json.loads((copy.student / "config.json").read_text())
    config["text_config"] |= changes
    (copy.student / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "of type 'gemma2', which scales its embeddings.*with qwen2, llama, mistral"),
        ({"model_type": "phi3"}, "which has one matrix for query, key and value"),
        ({"model_type": "internlm2"}, "of type 'internlm2', which has layers that this version does not know"),
        ({"model_type": "mistral", "sliding_window": 512}, "its last 512 tokens only .*unless it is null"),
    ],
)
def test_before_the_weights_are_read(tiny_run: TinyRun, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    student = with_text(tiny_run, tmp_path, **changes).student
    (student / "model.safetensors").write_bytes(b"not read")
    for read in (load_model, lambda path: language_shape(Checkpoint.open(path))):
        with pytest.raises(CheckpointError, match=message):
            read(student)


@pytest.mark.parametrize("verb", ["train", "dry run", "analyze", "eval", "export"])
def test_before_anything_is_made(tiny_run: TinyRun, tmp_path: Path, run: Run, verb: str) -> None:
    copy, out = with_text(tiny_run, tmp_path, model_type="granite"), tmp_path / "out"
    words: dict[str, tuple[object, ...]] = {
        "train": ("train", copy.yaml, "--out", out),
        "dry run": ("train", copy.yaml, "--out", out, "--dry-run"),
        "analyze": ("analyze", copy.yaml, "--out", out),
        "eval": ("eval", copy.student, "--data", copy.folder / "train.json", "--out", out),
        "export": ("export", copy.student, "--out", out),
    }
    code, _, stderr = run(*words[verb])
    assert code == 1
    assert "the text model is of type 'granite', which multiplies embeddings" in " ".join(stderr.split())
    assert not out.exists()


def test_reasons_are_of_types_that_exist() -> None:
    assert set(CONFIG_MAPPING.keys()) >= set(_REASONS)
    assert not set(_REASONS) & {name for family in FAMILIES.values() for name in family.text_models}
