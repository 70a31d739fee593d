"""An embedding row is what the file states: value times scale, for every precision, without expanding the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from drivekd.errors import BundleError
from drivekd.runtime.bundle.manifest import EmbeddingSpec, ModelInfo
from drivekd.runtime.decoder.embedding import EmbeddingTable, embedding_from_bytes

V, D = 50, 64
MODEL = ModelInfo("internvl", "00", 1, 2, 1, 32, D, V, 16, 1, "")
Tensors = dict[str, NDArray[Any]]


def tensors_of(precision: str, block: int) -> Tensors:
    rng = np.random.default_rng(0)
    if precision in ("fp32", "fp16"):
        return {"weight": rng.normal(size=(V, D)).astype({"fp32": np.float32, "fp16": np.float16}[precision])}
    scales = rng.uniform(0.001, 0.1, (V, D // block)).astype(np.float16)
    if precision == "int8":
        return {"weight": rng.integers(-128, 128, (V, D), dtype=np.int8), "scales": scales}
    return {"weight": rng.integers(0, 256, (V, D // 2), dtype=np.uint8), "scales": scales}


def expanded(tensors: Tensors, precision: str, block: int) -> NDArray[np.float32]:
    """The whole table, value by value."""
    table = np.zeros((V, D), np.float32)
    for row in range(V):
        for column in range(D):
            if precision == "int4":
                byte = int(tensors["weight"][row, column // 2])
                value = np.float32((byte % 16 if column % 2 == 0 else byte // 16) - 8)
            else:
                value = np.float32(tensors["weight"][row, column])
            table[row, column] = value if block == 0 else value * np.float32(tensors["scales"][row, column // block])
    return table


def read(tensors: Tensors, precision: str, block: int) -> EmbeddingTable:
    return embedding_from_bytes(safetensors.numpy.save(tensors), EmbeddingSpec(precision, block), MODEL, "here")


@pytest.mark.parametrize(
    ("precision", "block"), [("fp32", 0), ("fp16", 0), *((p, b) for p in ("int8", "int4") for b in (16, 32, 64))]
)
def test_rows_are_value_times_scale(precision: str, block: int) -> None:
    tensors = tensors_of(precision, block)
    table, truth = read(tensors, precision, block), expanded(tensors, precision, block)
    for ids in (np.arange(V), np.asarray([[3, 3, 0], [V - 1, 7, 3]]), np.asarray([[[5]]]), np.zeros((2, 0), np.int64)):
        found = table.rows(ids)
        assert found.dtype == np.float32
        assert np.array_equal(found, truth[ids])  # one float32 product a value: exact
    assert table.num_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_rows_may_be_written_without_changing_the_table() -> None:
    """Image embeddings are put into the rows of a prompt."""
    for precision, block in (("fp32", 0), ("int4", 32)):
        table = read(tensors_of(precision, block), precision, block)
        before = table.rows(np.arange(V))
        table.rows(np.arange(V))[:] = 0
        assert np.array_equal(table.rows(np.arange(V)), before)


@pytest.mark.parametrize(
    ("precision", "block", "edit", "message"),
    [
        ("fp32", 0, lambda t: t.pop("weight"), r"expected weight float32 \[50, 64\]; found nothing"),
        ("fp32", 0, lambda t: t.update(weight=t["weight"][:-1]), r"found weight float32 \[49, 64\]"),
        ("fp32", 0, lambda t: t.update(weight=t["weight"].astype(np.float16)), "found weight float16"),
        ("fp16", 0, lambda t: t.update(more=np.zeros(1)), r"found more float64 \[1\]"),
        ("int8", 32, lambda t: t.pop("scales"), r"expected scales float16 \[50, 2\], weight int8"),
        ("int8", 32, lambda t: t.update(scales=t["scales"].astype(np.float32)), "found scales float32"),
        ("int4", 32, lambda t: t.update(scales=t["scales"].T.copy()), r"found scales float16 \[2, 50\]"),
        ("int4", 32, lambda t: t.update(weight=t["weight"].astype(np.int8)), "found scales .* weight int8"),
    ],
)
def test_other_tensors_than_stated_are_refused(precision: str, block: int, edit: Any, message: str) -> None:
    tensors = tensors_of(precision, block)
    edit(tensors)
    with pytest.raises(BundleError, match=message):
        read(tensors, precision, block)


@pytest.mark.parametrize(
    ("precision", "block", "message"),
    [
        ("int2", 0, "embedding precision 'int2'; this drivekd reads fp32, fp16, int8, int4"),
        ("fp16", 32, "an fp16 embedding has no blocks"),
        ("int8", 0, "64 columns of the embedding cannot be cut into blocks of 0"),
        ("int4", 48, "cannot be cut into blocks of 48"),
        ("int4", -32, "cannot be cut into blocks of -32"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(precision: str, block: int, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read({"weight": np.zeros((V, D), np.float32)}, precision, block)


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(BundleError, match=r"here: embedding\.safetensors cannot be read"):
        embedding_from_bytes(b"weights", EmbeddingSpec("fp32", 0), MODEL, "here")
