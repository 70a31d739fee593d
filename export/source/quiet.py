"""Exporters talk a lot: progress bars, deprecations of their own internals, libraries that are not installed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

CHATTY_LOGGERS = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, those libraries report errors only and draw no progress bars; afterwards everything is as before."""
    levels = {name: logging.getLogger(name).level for name in CHATTY_LOGGERS}
    bars = transformers_logging.is_progress_bar_enabled()
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
