"""TensorRT engines from a bundle, built on the machine that will run them. Imports no torch.

This version builds none yet; it says what is missing. The ONNX bundle is complete and runs on onnxruntime without engines.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from drivekd.errors import ExportError
from drivekd.runtime.bundle import read_bundle


def engines_from_bundle(bundle: Path) -> None:
    """Build engines/<target>/ inside a verified bundle.

    Raises BundleError when the bundle is not whole, ExportError always in this version: without TensorRT it says how to get it.
    """
    digest = read_bundle(bundle).digest
    if importlib.util.find_spec("tensorrt") is None:
        raise ExportError(
            f"{bundle}: the ONNX bundle {digest[:19]} is complete, but no engine was built: TensorRT is not installed. "
            "On a Jetson: apt install python3-libnvinfer (JetPack); else: pip install --extra-index-url "
            "https://pypi.nvidia.com 'drivekd[trt]'. Then: "
            f"drivekd export {bundle} --trt"
        )
    raise ExportError(
        f"{bundle}: the ONNX bundle {digest[:19]} is complete, but this drivekd builds no TensorRT engines yet; "
        f"run it on onnxruntime: drivekd run {bundle}"
    )
