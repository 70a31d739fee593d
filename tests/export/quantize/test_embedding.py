"""The embedding table: written here, read by the runtime."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from drivekd.errors import ExportError
from drivekd.export.quantize.embedding import embedding_spec, quantize_embedding
from drivekd.runtime.bundle.manifest import ModelInfo
from drivekd.runtime.decoder.embedding import embedding_from_bytes

TABLES = arrays.arrays(
    np.float32, (6, 64), elements=st.floats(-60_000, 60_000, width=16) | st.sampled_from([0.0, 1e-6, -1e-6, 1.0])
)
# Half a step of the largest value (a 255th, a 15th), and float16's 11 bits of the scale, which 127 steps make more of than 7
BOUND = {"fp32": 0.0, "fp16": 2**-11, "int8": 1.13 / 255, "int4": 1.02 / 15}


def read_back(weight: NDArray[np.float32], precision: str, block: int) -> NDArray[np.float32]:
    vocabulary, width = weight.shape
    info = ModelInfo("internvl", "", 1, 1, 1, 8, width, vocabulary, 8, 1, "")
    spec = embedding_spec(precision, width, block)
    data = safetensors.numpy.save(quantize_embedding(weight, precision, spec.block))
    return embedding_from_bytes(data, spec, info, "here").rows(np.arange(vocabulary))


@pytest.mark.parametrize("precision", list(BOUND))
@pytest.mark.parametrize("block", [32, 128])
@given(weight=TABLES)
@settings(max_examples=50, deadline=None)
def test_rows_come_back_within_half_a_step(precision: str, block: int, weight: NDArray[np.float32]) -> None:
    found = read_back(weight, precision, block)
    whole = weight.reshape(6, -1, 32 if block == 32 and precision in ("int8", "int4") else 64)
    largest = np.abs(whole).max(axis=2, keepdims=True)
    # 6e-5: the smallest float16 scale
    assert (np.abs(found.reshape(whole.shape) - whole) <= largest * BOUND[precision] + 6e-5 * (precision != "fp32")).all()


def test_blocks_that_do_not_divide_a_row_become_the_row() -> None:
    assert embedding_spec("int4", 96, 64).block == 96
    assert embedding_spec("int4", 96, 32).block == 32
    assert embedding_spec("fp16", 96, 32).block == 0


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ExportError, match="33 values a row cannot be int4"):
        embedding_spec("int4", 33, 32)
    for bad, precision in ((1e5, "fp16"), (1e5, "int4"), (np.nan, "fp32"), (np.inf, "int8"), (-np.inf, "fp32")):
        weight = np.ones((2, 32), np.float32)
        weight[1, 1] = bad
        with pytest.raises(ExportError, match="the embedding's largest value is"):
            quantize_embedding(weight, precision, 32)
