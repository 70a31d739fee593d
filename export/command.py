"""What `drivekd export` does: a checkpoint becomes a bundle, or a bundle gets its engines. The latter imports no torch."""

from __future__ import annotations

from pathlib import Path

from drivekd.errors import UsageError
from drivekd.runtime.manifest import MANIFEST_FILE

from .parity import ParityTable
from .trt import engines_from_bundle

PARITY_HEADER = ["graph", "case", "output", "max |difference|", "relative", "limit", "argmax agrees", ""]


def export_command(source: Path, out: Path | None, *, precision: str, trt: bool) -> tuple[str, list[str], list[list[str]]]:
    """Export `source`; returns a table (title, header, rows).

    Raises UsageError, CheckpointError, ExportError; the last names the worst row when parity failed.
    """
    if (source / MANIFEST_FILE).is_file():
        if not trt or out is not None:
            raise UsageError(f"{source} is a bundle already; to build engines in it: drivekd export {source} --trt")
        engines_from_bundle(source)
        return f"engines of {source}", ["", ""], []
    if out is None:
        raise UsageError("where to? give --out BUNDLE")
    from .bundle import bundle_from_checkpoint

    table = bundle_from_checkpoint(source, out, precision=precision)
    if trt:
        engines_from_bundle(out)
    return f"parity of {out} with {source}, worst first", PARITY_HEADER, parity_rows(table)


def parity_rows(table: ParityTable) -> list[list[str]]:
    """The parity table as text under PARITY_HEADER."""
    return [
        [
            row.graph,
            row.case,
            row.output,
            f"{row.max_abs:.1e}",
            f"{row.max_rel:.1e}",
            f"{row.limit:.1e}",
            "" if row.argmax_agreement is None else f"{row.argmax_agreement:.1%}",
            "passed" if row.passed else "FAILED",
        ]
        for row in table.rows
    ]
