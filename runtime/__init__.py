"""The part that rides in the car: numpy and one inference engine, no torch, transformers or onnx."""

if __name__ != "drivekd.runtime":
    raise ImportError("import drivekd.runtime")

from .answer import Answer, FinishReason
from .bench import BenchReport, bench_bundle
from .bundle import read_bundle
from .check import CheckReport, check_bundle
from .manifest import Manifest
from .session import Session, load_bundle

__all__ = [
    "Answer",
    "BenchReport",
    "CheckReport",
    "FinishReason",
    "Manifest",
    "Session",
    "bench_bundle",
    "check_bundle",
    "load_bundle",
    "read_bundle",
]
