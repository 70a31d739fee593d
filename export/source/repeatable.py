"""The same checkpoint gives the same bundle: no bit of it depends on how many cores a machine has or what a process did before.

torch and onnxruntime split large products among their threads, and each way to split rounds in another way (a product over 1,024
channels differs between one thread and two). So whatever a bundle keeps of a computation (layers.npz, golden.npz, int8's ranges,
the parity table, the accuracy) is computed by EXPORT_THREADS threads. Fewer cores take turns; more are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

EXPORT_THREADS = 4
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # torch's own choice on a CPU


@contextmanager
def repeatable() -> Iterator[None]:
    """Within it, torch on the CPU computes what it would in a fresh process anywhere; afterwards its settings are as before.

    Those are threads, the precision of float32 products and convolutions, oneDNN, the kernels of attention, autocast and the
    default type: all that was found to move a bit.
    """
    onednn: Any = torch.backends.mkldnn
    threads, dtype, enabled = torch.get_num_threads(), torch.get_default_dtype(), bool(onednn.enabled)
    torch.set_num_threads(EXPORT_THREADS)
    torch.set_default_dtype(torch.float32)
    onednn.enabled = True
    try:
        with _whole_float32(), sdpa_kernel(ATTENTION), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        onednn.enabled = enabled


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Other settings let the CPU multiply in bfloat16. Since 2.9 torch has one for each backend.

    It then refuses to tell the old, common one when somebody has used both.
    """
    if not hasattr(torch.backends, "fp32_precision"):
        old = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(old)
        return
    mkldnn: Any = torch.backends.mkldnn
    backends = [mkldnn.matmul, mkldnn.conv]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
