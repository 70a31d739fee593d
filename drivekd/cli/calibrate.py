"""`drivekd calibrate`: what was measured goes into the bundle, or beside the weights of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from drivekd.evaluate.answering.opening import is_bundle
from drivekd.evaluate.confidence.calibrate import CalibrationReport, CalibrationRequest, calibrate
from drivekd.evaluate.sheet.sheet import renew_sheet
from drivekd.files import write_whole
from drivekd.log import logger
from drivekd.runtime.answers.confidence import CALIBRATION_FILE, Calibration, calibration_from_bytes, calibration_to_text

REPORT_FILE = "calibration_report.json"


def calibrate_command(request: CalibrationRequest, out: Path | None, say: Callable[[str], None]) -> CalibrationReport:
    """Measure, then store. out: a new bundle, or a folder for a checkpoint's calibration.json; None = in place.

    Raises UsageError, DataError, CheckpointError, BundleError, RunnerError, ExportError.
    """
    report = calibrate(request)
    if request.answers is not None:
        write_whole(request.answers / REPORT_FILE, json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
        if (page := renew_sheet(request.answers)) is not None:
            say(f"score sheet: {page}")
    if is_bundle(request.model):
        from drivekd.export.calibrated import calibrated_bundle

        digest, left_out = calibrated_bundle(request.model, report.entries, out)
        for told in left_out:
            say(f"note: {told}")
        say(f"{out or request.model} is now {digest}")
    else:
        say(f"written: {_beside_weights(request.model, out or request.model, report)}")
    return report


def _beside_weights(checkpoint: Path, folder: Path, report: CalibrationReport) -> Path:
    """Entries that were measured on these very weights stay; of other weights they would promise what nobody measured."""
    kept: Mapping[str, Calibration] = {}
    known = checkpoint / CALIBRATION_FILE
    if known.is_file():
        before = calibration_from_bytes(known.read_bytes(), str(checkpoint))
        kept = {name: one for name, one in before.items() if one.measured is not None and one.measured.model == report.model}
        if dropped := sorted(set(before) - set(kept) - set(report.entries)):
            logger.warning("%s: %s was measured on other weights and is left out", known, ", ".join(dropped))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CALIBRATION_FILE, calibration_to_text({**kept, **report.entries}))
    return folder / CALIBRATION_FILE
