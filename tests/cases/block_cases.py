"""What the tests of the block store share: a spec, a block for every key, and what is warned of."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drivekd.distill.teachers.shard import StoredDtype
from drivekd.distill.teachers.store import BlockStore

SPEC = {"kind": "attention", "teacher": "sha256:ab", "layers": [12, -1]}
SHAPES = [(3, 5), (0, 7), (1,), (), (2, 0, 3), (2, 3, 4)]
DTYPES: list[StoredDtype] = ["fp32", "fp16", "bf16"]


def value_of(key: str) -> Tensor:
    """What every writer stores under `key`: a block that no other key has, exact in every dtype."""
    draw = random.Random(key)
    shape = draw.choice(SHAPES)
    size = torch.Size(shape).numel()
    return torch.tensor([draw.randrange(-256, 257) / 32 for _ in range(size)]).reshape(shape)


def fill(root: Path, names: list[str], **options: Any) -> Path:
    """A store that holds `names` in one shard. Returns the shard."""
    with BlockStore(root, SPEC, **options) as store:
        before = set(store.directory.glob("*.safetensors"))
        for name in names:
            store.put(name, value_of(name))
    (shard,) = set(store.directory.glob("*.safetensors")) - before
    return shard


def assert_holds(store: BlockStore, names: list[str] | set[str]) -> None:
    for name in names:
        assert name in store
        found = store.get(name)
        assert found is not None and found.dtype == torch.float32
        assert torch.equal(found, value_of(name))


@contextmanager
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What drivekd warns of in the block."""
    found: list[str] = []
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="drivekd"):
        yield found
    found.extend(record.getMessage() for record in caplog.records)
