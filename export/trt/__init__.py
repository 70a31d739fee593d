"""TensorRT engines from a bundle's graphs. Imports no torch: it runs on the car."""

from .engines import compile_ahead, engines_from_bundle

__all__ = ["compile_ahead", "engines_from_bundle"]
