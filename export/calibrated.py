"""A bundle gets its confidences: calibration.json, a new manifest over it, and with that another digest. Imports no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from drivekd.errors import ExportError
from drivekd.files import refuse_non_empty, whole_directory
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


_OF_THE_OLD = {
    SIGNATURE_FILE: "the signature was of the bundle without these confidences: sign again, drivekd export BUNDLE --sign KEY.pem",
    ENGINES_DIR: "the engines were built for the bundle without these confidences: build again, drivekd export BUNDLE --trt",
}
