"""Which engine runs a bundle here, by name, and which decoder dialects it can run: the one table of backends.

Nobody falls back in silence: "auto" looks at what is there before anything is started, and a backend that does not start is an
error. Falling back to another one is `drivekd.runtime.resilience.ladder`'s matter, where every answer says so.
"""

from __future__ import annotations

import importlib
import platform
from pathlib import Path

import onnxruntime

from drivekd.errors import BundleError, UsageError
from drivekd.runtime.bundle.engine_record import RECORD_DIGEST_FILE
from drivekd.runtime.bundle.manifest import DIALECTS, ENGINES_DIR, Manifest
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
    return {"engine": f"{name} {version}", "device": device, "engines": digest.read_text(encoding="utf-8").strip()}


def _processor() -> str:
    """The CPU with its instruction sets: kernels are chosen by them."""
    path = Path("/proc/cpuinfo")
    first = path.read_text(encoding="utf-8").split("\n\n")[0] if path.exists() else platform.processor()
    facts = [line.partition(":") for line in first.splitlines()]
    return "; ".join([platform.machine(), *(value.strip() for key, _, value in facts if key.strip() in CPU_FACTS)])


# In-place buffers are host memory, so the dialect that needs them stays there.
RUNNABLE = {"ort-cpu": DIALECTS, "ort-cuda": ("concat",), "trt": ("concat",)}


def choose_dialect(manifest: Manifest, backend: str, dialect: str | None, source: str) -> str:
    """The dialect asked for, or the first of the manifest's that `backend` can run.

    Raises UsageError (one asked for that this bundle or backend has not), BundleError (none can run, or its graph is missing).
    """
    runnable = RUNNABLE[backend]
    found = next((name for name in manifest.dialects if name in runnable), None) if dialect is None else dialect
    if found is None:
        raise BundleError(
            f"{source}: its decoder has the dialects {', '.join(manifest.dialects) or 'none'}; {backend} of this drivekd runs "
            f"{', '.join(runnable)}. Export the checkpoint again with one of them, or update drivekd."
        )
    if found not in manifest.dialects or found not in runnable:
        raise UsageError(
            f"dialect {found!r}: this bundle has {', '.join(manifest.dialects)}, {backend} runs {', '.join(runnable)}; "
            "leave the choice out, or ask for one that is in both"
        )
    if f"decoder.{found}" not in manifest.graphs:
        raise BundleError(f"{source}: the manifest names the dialect {found}, but has no graph decoder.{found}")
    return found
