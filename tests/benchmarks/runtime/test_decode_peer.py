"""The peer's model is ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors import safe_open

if TYPE_CHECKING:
    from command_fixtures import SmallExport

pytestmark = pytest.mark.e2e


def test_language_model_of_the_peer_has_the_same_weights(small_export: SmallExport, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from benchmarks.runtime.decode_peer import save_language_model

    folder = save_language_model(small_export.folder / "small", tmp_path)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if not name.startswith(("model.", "lm_head."))]  # noqa: SIM118
    whole, alone = (
        AutoModelForImageTextToText.from_pretrained(small_export.folder / "small"),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    ids = {"input_ids": whole.dummy_inputs["input_ids"]}
    expected, found = whole(**ids).logits, alone(**ids).logits
    assert type(alone).__name__ == "Qwen2ForCausalLM"
    np.testing.assert_array_equal(expected.detach().float().numpy(), found.detach().float().numpy())
