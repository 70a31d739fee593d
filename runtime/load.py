"""From a path to a session: read and verify the bundle, choose backend and dialect, pass the parity gate, start the engines."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from drivekd.runtime.bundle.reader import read_bundle
from drivekd.runtime.engine.backends import choose_backend, choose_dialect
from drivekd.runtime.engine.ort import PROVIDERS
from drivekd.runtime.engine.ort_operators import check_platform
from drivekd.runtime.parity.gate import pass_gate
from drivekd.runtime.parity.golden import GOLDEN_FILE

from .session.session import Session


def load_bundle(
    path: Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    expect_digest: str | None = None,
    public_key: Path | None = None,
    dialect: str | None = None,
    gate: bool = True,
    refresh_hz: Mapping[str, float] | None = None,
) -> Session:
    """Verify a bundle's every byte, start its engines, pass its parity gate and return a session (a context manager).

    backend: "ort-cpu", "ort-cuda", "trt", or "auto": "trt" where the bundle has engines for this device, else "ort-cpu".
    threads: of one engine operator, None = all cores. expect_digest, public_key: as read_bundle takes them. dialect: how the
    decoder keeps K/V, "gqa" or "concat"; None = the first of the bundle's that the backend runs. gate: False = answer without
    having seen that this machine computes what the exporting one did. refresh_hz: by camera, how often its image is taken anew at
    most; others at every frame.
    Raises BundleError (changed, incomplete, not signed by this key, not for this machine, or the gate failed), RunnerError (the
    engine does not start), UsageError (unknown backend, dialect or camera, no key).

        >>> with load_bundle(bundle, backend="ort-cpu") as session:
        ...     answers = session.answer({"CAM_FRONT": image}, max_new_tokens=2)
        >>> sorted(answers)
        ['perception', 'planning', 'reasoning']
        >>> answers["planning"].backend
        'ort-cpu'
    """
    path = Path(path)
    backend = choose_backend(backend, path)
    bundle = read_bundle(path, expect_digest=expect_digest, public_key=public_key, defer=True)
    dialect = choose_dialect(bundle.manifest, backend, dialect, str(path))
    if backend in PROVIDERS:
        check_platform(bundle, dialect=dialect)
    golden = bundle.files.get(GOLDEN_FILE)
    with ExitStack() as opened_here:
        session = Session(bundle, backend=backend, threads=threads, dialect=dialect, refresh_hz=refresh_hz)
        opened_here.enter_context(session)
        if gate:
            pass_gate(session.model, golden, path)
        opened_here.pop_all()
    return session
