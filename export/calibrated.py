"""A bundle gets its confidences: calibration.json, a new manifest over it, and with that another digest. Imports no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from drivekd.errors import BundleError, CheckpointError, ExportError
from drivekd.files import checkpoint_digest, refuse_non_empty, whole_directory
from drivekd.log import logger
from drivekd.runtime.answers.confidence import CALIBRATION_FILE, Calibration, calibration_from_bytes, calibration_to_text
from drivekd.runtime.bundle.manifest import ENGINES_DIR
from drivekd.runtime.bundle.reader import read_bundle
from drivekd.runtime.bundle.signature import SIGNATURE_FILE

from .exported import write_manifest


def calibrated_bundle(path: Path, entries: Mapping[str, Calibration], out: Path | None = None) -> tuple[str, list[str]]:
    """Write the entries into a bundle, in place (out None) or as the new bundle `out`; its other entries stay.

    A signature and engines are of the bundle that was: they are not in the new one. Returns its digest and what was left out, for
    people. Raises BundleError (not whole), UsageError (`out` is not empty), ExportError (no disk space).
    """
    bundle = read_bundle(path, defer=True)
    if out is not None:
        refuse_non_empty(out, "name another --out, or remove it")
    known = bundle.files.get(CALIBRATION_FILE)
    merged = {} if known is None else calibration_from_bytes(known, str(path))
    place = path if out is None else out
    left_out = [told for name, told in _OF_THE_OLD.items() if (path / name).exists()]
    with whole_directory(place, error_type=ExportError) as staging:
        for name in bundle.manifest.files:
            if name == CALIBRATION_FILE:
                continue
            if out is None:
                os.link(path / name, staging / name)  # the old name goes in a moment; gigabytes need not be written again
            else:
                shutil.copyfile(path / name, staging / name)
        (staging / CALIBRATION_FILE).write_text(calibration_to_text({**merged, **entries}), encoding="utf-8")
        write_manifest(bundle.manifest, staging)
        digest = read_bundle(staging, defer=True).digest
    return digest, left_out


def carry_calibration(checkpoint: Path, bundle: Path, *, same_weights: bool) -> None:
    """Put a checkpoint's calibration.json, where it has one, into a bundle that is being made of it.

    same_weights: the bundle computes with the weights that `drivekd eval` of the checkpoint answers with. What was measured on
    others is left out, with a warning. Raises CheckpointError when the file is damaged.
    """
    path = checkpoint / CALIBRATION_FILE
    if not path.is_file():
        return
    again = "calibrate the bundle: drivekd calibrate BUNDLE --data RECORDS"
    if not same_weights:
        logger.warning("%s was measured on weights that are not the bundle's, and is left out; %s", path, again)
        return
    try:
        entries = calibration_from_bytes(path.read_bytes(), str(checkpoint))
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    digest = checkpoint_digest(checkpoint)
    kept = {name: one for name, one in entries.items() if one.measured is not None and one.measured.model == digest}
    if dropped := [name for name in entries if name not in kept]:
        logger.warning("%s: %s was not measured on these weights, and is left out; %s", path, ", ".join(dropped), again)
    if kept:
        (bundle / CALIBRATION_FILE).write_text(calibration_to_text(kept), encoding="utf-8")


_OF_THE_OLD = {
    SIGNATURE_FILE: "the signature was of the bundle without these confidences: sign again, drivekd export BUNDLE --sign KEY.pem",
    ENGINES_DIR: "the engines were built for the bundle without these confidences: build again, drivekd export BUNDLE --trt",
}
