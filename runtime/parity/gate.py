"""The parity gate: no answer before this machine has computed what the exporting machine computed.

A verdict is kept in $XDG_CACHE_HOME/drivekd/gate (or ~/.cache), so that the run is made once for each bundle, engine, version,
device and dialect; anything else that is found there, and any file that is not whole, means another run. Only a passed run is
kept. Whoever can write to that folder can also write a verdict: it saves time, it is no proof.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd import __version__
from drivekd.errors import BundleError
from drivekd.files import LEFTOVER_AGE_S, remove_leftovers, write_whole
from drivekd.log import logger
from drivekd.runtime.engine.backends import engine_identity
from drivekd.runtime.session.model import StartedModel
from drivekd.typed_json import TypedJsonError, dataclass_from_json, json_from_dataclass

from .golden import GOLDEN_FILE, Replay, replay_golden
from .limits import MIN_AGREEMENT, MIN_COSINE


@dataclass(frozen=True)
class Verdict:
    """A passed run, and all that it depends on. engine: as engine_identity says."""

    bundle: str
    dialect: str
    drivekd_version: str
    engine: dict[str, str]
    replay: Replay


def pass_gate(model: StartedModel, golden: bytes | None, bundle: Path, *, folder: Path | None = None) -> Replay:
    """The stored verdict of this bundle on this engine, or else the recorded run, replayed now and stored when it passed.

    golden: the bundle's verified golden.npz. bundle: its directory. folder: of the verdicts, None = the user's cache.
    Raises BundleError when the run fails or the bundle has none, RunnerError.
    """
    identity = _identity(model, bundle)
    file = _verdict_file(identity, folder)
    if (kept := _read(file, identity)) is not None:
        return kept
    return keep_verdict(model, bundle, replay_now(model, golden, bundle), folder=folder)


def replay_now(model: StartedModel, golden: bytes | None, bundle: Path) -> Replay:
    """Replay golden.npz whatever was stored, and leave the model as new. Raises BundleError when it fails, RunnerError."""
    if golden is None:
        raise BundleError(f"{bundle}: {GOLDEN_FILE} is missing, so nothing says what this bundle computes; export it again")
    found = replay_golden(model, golden, str(bundle))
    model.prefix.forget()
    if not found.passed:
        raise BundleError(
            f"{bundle}: {model.backend} on this machine does not compute what the exporting machine did: vision cosine "
            f"{found.vision_cosine:.6f} (expected >= {MIN_COSINE}), {found.tokens_agreeing} of {found.tokens_compared} tokens "
            f"agree (expected >= {MIN_AGREEMENT:.0%}). Do not drive with it; try another backend."
        )
    return found


def _identity(model: StartedModel, bundle: Path) -> dict[str, Any]:
    engine = engine_identity(bundle, model.backend)
    return {"bundle": model.bundle_digest, "dialect": model.dialect, "drivekd_version": __version__, "engine": engine}


def _verdict_file(identity: dict[str, Any], folder: Path | None) -> Path | None:
    """Where the verdict lies; None where a user has no home."""
    folder = folder or _cache_folder()
    return None if folder is None else folder / f"{_digest(identity)}.json"


def _cache_folder() -> Path | None:
    stated = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not stated.is_absolute():  # the XDG specification: a relative path is to be ignored
        try:
            stated = Path.home() / ".cache"
        except RuntimeError:
            return None
    return stated / "drivekd" / "gate"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(file: Path | None, identity: dict[str, Any]) -> Replay | None:
    """The run that a file vouches for; None when there is none, or it is not whole, or of something else."""
    if file is None:
        return None
    try:
        value = json.loads(file.read_bytes())
        stored = value["verdict"]
        verdict = dataclass_from_json(Verdict, stored, file.name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, TypedJsonError) as error:
        logger.warning("%s is no verdict of the parity gate (%s): the recorded run is replayed", file, error)
        return None
    same = {name: stored[name] for name in identity} == identity
    if value.get("sha256") != _digest(stored) or not same or not verdict.replay.passed:
        logger.warning("%s was changed: the recorded run is replayed", file)
        return None
    return verdict.replay


def keep_verdict(model: StartedModel, bundle: Path, replay: Replay, *, folder: Path | None = None) -> Replay:
    """Store a passed run for the next start, as pass_gate reads it; returns it."""
    assert replay.passed, "replay_now raises"
    identity = _identity(model, bundle)
    file = _verdict_file(identity, folder)
    verdict = json_from_dataclass(Verdict(**identity, replay=replay))
    data = json.dumps({"verdict": verdict, "sha256": _digest(verdict)}, indent=1) + "\n"
    try:
        if file is None:
            raise OSError("this user has no home directory")
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_leftovers(file.parent, age_s=LEFTOVER_AGE_S)
        write_whole(file, data, shared=True, mode=0o600)
    except OSError as error:  # a read-only or full disk: the gate was passed, and will be passed again at the next start
        logger.warning("the parity gate's verdict cannot be kept (%s): set XDG_CACHE_HOME to a folder that can be written", error)
    return replay
