"""Is this bundle whole, and does this machine compute what the exporting machine computed?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drivekd.errors import BundleError

from .bundle import Bundle, read_bundle
from .golden import GOLDEN_FILE, MIN_AGREEMENT, MIN_COSINE, Replay, replay_golden
from .manifest import Manifest
from .ort import ort_backend
from .session import Session


@dataclass(frozen=True)
class CheckReport:
    """What a passed check found. replay is None when only the digests were checked. manifest: as verified, not in to_json."""

    bundle: str
    backend: str
    num_files: int
    num_bytes: int
    replay: Replay | None
    manifest: Manifest

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "manifest"}


def check_bundle(
    path: Path,
    *,
    replay: bool = True,
    backend: str = "auto",
    threads: int | None = None,
    expect_digest: str | None = None,
) -> CheckReport:
    """Verify every digest and, with `replay`, the parity gate on this machine.

    Raises BundleError (changed, incomplete, or the gate failed), RunnerError (the engine does not start), UsageError.
    """
    backend = ort_backend(backend)
    bundle = read_bundle(Path(path), expect_digest=expect_digest)
    sizes = [entry.bytes for entry in bundle.manifest.files.values()]
    found = replay_bundle(bundle, backend=backend, threads=threads) if replay else None
    return CheckReport(bundle.digest, backend, len(sizes), sum(sizes), found, bundle.manifest)


def replay_bundle(bundle: Bundle, *, backend: str, threads: int | None = None) -> Replay:
    """The parity gate. Raises BundleError when it fails."""
    source = str(bundle.path)
    if GOLDEN_FILE not in bundle.files:
        raise BundleError(f"{source}: {GOLDEN_FILE} is missing, so nothing says what this bundle computes; export it again")
    with Session(bundle, backend=backend, threads=threads) as session:
        found = replay_golden(session, bundle.files[GOLDEN_FILE], source)
    if not found.passed:
        raise BundleError(
            f"{source}: {backend} on this machine does not compute what the exporting machine did: vision cosine "
            f"{found.vision_cosine:.6f} (expected >= {MIN_COSINE}), {found.tokens_agreeing} of {found.tokens_compared} tokens "
            f"agree (expected >= {MIN_AGREEMENT:.0%}). Do not drive with it; try another backend."
        )
    return found
