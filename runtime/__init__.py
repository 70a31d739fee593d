"""The part that rides in the car: numpy and one inference engine, no torch, transformers or onnx."""

if __name__ != "drivekd.runtime":
    raise ImportError("import drivekd.runtime")

from .answers.answer import Answer, FinishReason
from .answers.ask import GREEDY, Answering, Ask, Sampling
from .bench import BenchReport, bench_bundle
from .bundle.manifest import Manifest
from .bundle.reader import read_bundle
from .check import CheckReport, check_bundle
from .load import load_bundle
from .meters.health import HealthSnapshot
from .resilience.ladder import Ladder, Rung
from .resilience.worker import WorkerSession, WorkerSettings
from .session.session import AnswerSession, Session

__all__ = [
    "GREEDY",
    "Answer",
    "AnswerSession",
    "Answering",
    "Ask",
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
