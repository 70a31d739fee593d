"""The same checkpoint gives the same bundle: no bit of it depends on how many cores a machine has or what a process did before.

torch and onnxruntime split large products among their threads, and each way to split rounds in another way (a product over 1,024
channels differs between one thread and two). So whatever a bundle keeps of a computation (layers.npz, golden.npz, int8's ranges,
the parity table, the accuracy) is computed by EXPORT_THREADS threads. Fewer cores take turns; more are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

EXPORT_THREADS = 4


@contextmanager
def repeatable() -> Iterator[None]:
    """Within it, torch on the CPU computes what it would in a fresh process anywhere; afterwards its settings are as before."""
    threads, precision, dtype = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.set_num_threads(EXPORT_THREADS)
    torch.set_float32_matmul_precision("highest")  # lower ones let the CPU multiply in bfloat16
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
