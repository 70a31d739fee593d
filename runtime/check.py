"""Is this bundle whole, and does this machine compute what the exporting machine computed?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drivekd.errors import BundleError

from .bundle.engine_record import list_targets, verify_engine
from .bundle.manifest import Manifest
from .bundle.onnx_file import OnnxFile
from .bundle.reader import Bundle, read_bundle
from .bundle.signature import SignatureState
from .engine.backends import choose_backend, choose_dialect
from .engine.ort import PROVIDERS
from .engine.ort_operators import check_platform
from .parity.gate import keep_verdict, replay_now
from .parity.golden import GOLDEN_FILE, Replay
from .session.session import Session

UNUSABLE = "NOT USABLE"


@dataclass(frozen=True)
class CheckReport:
    """What a passed check found.

    replay: None when the parity gate was not asked for. opsets: of each graph, for people. engines: target of each folder below
    engines/ and what it holds, every byte verified. path, manifest: as verified, not in to_json.
    """

    path: Path
    bundle: str
    backend: str
    num_files: int
    num_bytes: int
    signature: SignatureState
    replay: Replay | None
    opsets: dict[str, str]
    engines: tuple[tuple[str, str], ...]
    manifest: Manifest

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("path", "manifest")}


def check_bundle(
    path: Path,
    *,
    replay: bool = True,
    backend: str = "auto",
    threads: int | None = None,
    expect_digest: str | None = None,
    public_key: Path | None = None,
) -> CheckReport:
    """Verify every digest (and the signature, with `public_key`), that this machine can run the graphs, and with `replay` the
    parity gate.

    Raises BundleError (changed, incomplete, not signed by this key, not for this machine, or the gate failed), RunnerError (the
    engine does not start), UsageError.

        >>> report = check_bundle(bundle)
        >>> report.signature, report.replay.passed, report.manifest.dialects
        ('unsigned', True, ('gqa', 'concat'))
    """
    backend = choose_backend(backend, Path(path))
    bundle = read_bundle(Path(path), expect_digest=expect_digest, public_key=public_key, defer=True)
    dialect = choose_dialect(bundle.manifest, backend, None, str(path))
    if backend in PROVIDERS:
        check_platform(bundle, dialect=dialect)
    sizes = [entry.bytes for entry in bundle.manifest.files.values()]
    return CheckReport(
        path=bundle.path,
        bundle=bundle.digest,
        backend=backend,
        num_files=len(sizes),
        num_bytes=sum(sizes),
        signature=bundle.signature,
        replay=replay_bundle(bundle, backend=backend, threads=threads) if replay else None,
        opsets={name: _opsets(graph) for name, graph in bundle.graphs.items()},
        engines=tuple((target, _engine_state(bundle, target)) for target in list_targets(bundle.path)),
        manifest=bundle.manifest,
    )


def _opsets(graph: OnnxFile) -> str:
    """ONNX's version, and further operator sets by name."""
    return ", ".join([str(graph.opsets.get("", "")), *sorted(domain for domain in graph.opsets if domain)])


def _engine_state(bundle: Bundle, target: str) -> str:
    """What one engine folder holds, or why it may not be run. It lies outside the digest: a bad one is no fault of the bundle."""
    try:
        record = verify_engine(bundle, target).record
    except BundleError as error:
        return f"{UNUSABLE}: {error}"
    made = f"{record.platform.builder} {record.platform.version} for {record.platform.device or 'any device'}"
    engines = ", ".join(f"{name} {entry.precision} {entry.file.bytes / 1e6:.1f} MB" for name, entry in record.engines.items())
    return f"{made}: {engines}"


def replay_bundle(bundle: Bundle, *, backend: str, threads: int | None = None) -> Replay:
    """The parity gate, replayed whatever was stored; the verdict is kept for the next start. Raises BundleError when it fails."""
    golden = bundle.files.get(GOLDEN_FILE)
    with Session(bundle, backend=backend, threads=threads) as session:  # which reads schemas and calibration, too
        return keep_verdict(session.model, bundle.path, replay_now(session.model, golden, bundle.path))
