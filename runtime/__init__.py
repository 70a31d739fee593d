"""The part that rides in the car: numpy and one inference engine, no torch, transformers or onnx."""

if __name__ != "drivekd.runtime":
    raise ImportError("import drivekd.runtime")

from .answer import Answer, FinishReason
from .answer_session import AnswerSession
from .bench import BenchReport, bench_bundle
from .bundle import read_bundle
from .check import CheckReport, check_bundle
from .fallback import Ladder, Rung
from .health import HealthSnapshot
from .manifest import Manifest
from .sampling import GREEDY, Sampling
from .session import Session, load_bundle
from .worker import WorkerSession, WorkerSettings

__all__ = [
    "GREEDY",
    "Answer",
    "AnswerSession",
    "BenchReport",
    "CheckReport",
    "FinishReason",
    "HealthSnapshot",
    "Ladder",
    "Manifest",
    "Rung",
    "Sampling",
    "Session",
    "WorkerSession",
    "WorkerSettings",
    "bench_bundle",
    "check_bundle",
    "load_bundle",
    "read_bundle",
]
