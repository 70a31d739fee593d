"""The checkpoints of the export benchmark: a tokenizer of the asked size, weights that are lively."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors import safe_open

if TYPE_CHECKING:
    from command_fixtures import SmallExport

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("entries", [700, 66_500])
def test_tokenizer_has_the_asked_size_and_reads_its_own_text(entries: int) -> None:
    from benchmarks.export.models import TEXTS, make_tokenizer
    from drivekd.models.tiny import SPECIAL_TOKENS

    tokenizer = make_tokenizer(entries, SPECIAL_TOKENS)
    assert tokenizer.get_vocab_size() == entries
    for text in (*TEXTS, "Zebra crossing: 42 m?"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_weights_of_the_models_are_lively(small_export: SmallExport) -> None:
    """Constants would make parity vacuous: position embeddings, biases and norms all vary."""
    with safe_open(small_export.folder / "small" / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            values = weights.get_tensor(name).float()
            assert values.std() > 0 or "lambda" in name, name
