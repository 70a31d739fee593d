"""What an export computes hangs on no setting that the process has made before, and leaves every setting as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from drivekd.export.source.repeatable import repeatable

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"x": (64, 1024), "w": (96, 1024), "q": (1, 4, 300, 64), "image": (1, 3, 56, 56), "kernel": (64, 3, 14, 14)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def computed(inputs: dict[str, Tensor]) -> list[Tensor]:
    """A product that one thread rounds differently from two, a convolution, attention."""
    with repeatable():
        return [
            torch.nn.functional.linear(inputs["x"], inputs["w"]),
            torch.nn.functional.conv2d(inputs["image"], inputs["kernel"], stride=14),
            torch.nn.functional.scaled_dot_product_attention(*[inputs["q"]] * 3),
            torch.tensor(1.5),
        ]


@contextmanager
def changed(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
        assert getattr(owner, name) == value, "a setting was not given back"
    finally:
        setattr(owner, name, before)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
        assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


MKLDNN: Any = torch.backends.mkldnn
SETTINGS: dict[str, Callable[[], Any]] = {
    "one thread": lambda: threads(1),
    "three threads": lambda: threads(3),
    "float64": float64,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "products in bfloat16": lambda: changed(MKLDNN.matmul, "fp32_precision", "bf16"),
    "convolutions in bfloat16": lambda: changed(MKLDNN.conv, "fp32_precision", "bf16"),
    "the new setting of another device": lambda: changed(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "no oneDNN": lambda: changed(MKLDNN, "enabled", False),
    "plain attention": lambda: sdpa_kernel(SDPBackend.MATH),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_moves_a_bit(inputs: dict[str, Tensor], setting: str) -> None:
    expected = computed(inputs)
    with ExitStack() as stack:
        stack.enter_context(SETTINGS[setting]())
        found = computed(inputs)
    assert [(a.dtype, torch.equal(a, b)) for a, b in zip(found, expected, strict=True)] == [(torch.float32, True)] * 4
