"""What `drivekd data validate` does: a report, and with --fix a file of what is sound."""

from __future__ import annotations

from pathlib import Path

from drivekd.data.readers import SampleFile
from drivekd.errors import DataError, UsageError
from drivekd.sample import CAPABILITIES, Capability

from .mend import MendReport, mend_file
from .validate import ValidationReport, validate_file


def validate_command(
    path: Path,
    *,
    image_root: Path | None,
    unlabelled: bool,
    checkpoint: Path | None,
    capability: Capability | None,
    frames: Path | None,
    skip_images: bool,
    fix: Path | None,
) -> tuple[ValidationReport, MendReport | None]:
    """Arguments: validate_file. fix: the file to write.

    Raises UsageError, CheckpointError; DataError when the file cannot be read to its end, so that nothing can be fixed.
    """
    if capability is not None and capability not in CAPABILITIES:
        raise UsageError(f"capability: expected one of {', '.join(CAPABILITIES)}, found {capability!r}")
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if fix is not None and fix.exists():
        raise UsageError(f"{fix} is there already; --fix writes a new file")
    report = validate_file(
        path,
        image_root=image_root,
        unlabelled=unlabelled,
        checkpoint=checkpoint,
        capability=capability,
        frames=frames,
        skip_images=skip_images,
    )
    if fix is None:
        return report, None
    if any(tally.kind == "file" for tally in report.problems):
        raise DataError(f"{report.problems[-1].first[0]}; a file that cannot be read to its end is not mended")
    file = SampleFile(path, image_root=image_root, unlabelled=unlabelled, capability=capability, frames=frames)
    return report, mend_file(report, file, fix)
