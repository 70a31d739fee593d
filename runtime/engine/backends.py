"""Which engine runs a bundle here, by name: the one table of backends.

Nobody falls back in silence: "auto" looks at what is there before anything is started, and a backend that does not start is an
error. Falling back to another one is `fallback`'s matter, where every answer says so.
"""

from __future__ import annotations

import importlib
import platform
from pathlib import Path

import onnxruntime

from drivekd.errors import BundleError, UsageError
from drivekd.runtime.bundle.engine_record import RECORD_DIGEST_FILE
from drivekd.runtime.bundle.manifest import ENGINES_DIR
from drivekd.runtime.bundle.reader import Bundle

from .cuda import this_device
from .ort import PROVIDERS, OrtRunner
from .runner import Runner
from .trt import MODULES, TrtRunner, engine_module

AUTO, TRT = "auto", "trt"
BACKENDS = (AUTO, TRT, *PROVIDERS)
CPU_FACTS = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "CPU variant", "Features")  # x86, ARM


def choose_backend(name: str, bundle: Path) -> str:
    """Resolve "auto": "trt" where the bundle has engines of this GPU and TensorRT is installed, else "ort-cpu".

    Raises UsageError: an unknown name.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is unknown; this version has: {', '.join(BACKENDS)}")
    if name != AUTO:
        return name
    return TRT if engine_module(bundle) is not None else "ort-cpu"


def open_runner(bundle: Bundle, graph: str, backend: str, threads: int | None) -> Runner:
    """A runner of one graph ("vision", "decoder.<dialect>"), not yet entered. threads: of one operator on a CPU, None = all."""
    if backend == TRT:
        return TrtRunner(bundle, graph)
    return OrtRunner(bundle, graph, backend=backend, threads=threads)


def engine_identity(bundle: Path, backend: str) -> dict[str, str]:
    """What may change a result on this machine: engine with its version, device, and the built engines' digest.

    Raises BundleError: the bundle has no engines for `trt` here.
    """
    gpu = this_device() if backend != "ort-cpu" else None
    device = _processor() if gpu is None else f"{gpu.name} SM {gpu.capability}, {gpu.driver}"
    if backend != TRT:
        return {"engine": f"onnxruntime {onnxruntime.__version__} {backend}", "device": device}
    name = engine_module(bundle)
    if name is None or gpu is None:
        raise BundleError(f"{bundle}: no engines for this GPU. Build them here: drivekd export {bundle} --trt")
    digest = bundle / ENGINES_DIR / f"{MODULES[name]}sm{gpu.capability}" / RECORD_DIGEST_FILE
    version = importlib.import_module(name).__version__
    return {"engine": f"{name} {version}", "device": device, "engines": digest.read_text().strip()}


def _processor() -> str:
    """The CPU with its instruction sets: kernels are chosen by them."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else platform.processor()
    facts = [line.partition(":") for line in first.splitlines()]
    return "; ".join([platform.machine(), *(value.strip() for key, _, value in facts if key.strip() in CPU_FACTS)])
