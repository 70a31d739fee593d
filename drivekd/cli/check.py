"""What `drivekd check` does: verify a bundle, judge another engine's answers, or find the layer that computes something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from drivekd.errors import BundleError, UsageError

Show = Callable[[str, list[str], list[list[str]]], None]  # title, header, rows


def check_command(
    bundle: Path,
    *,
    verbose: bool,
    expect_digest: str | None,
    public_key: Path | None,
    bisect: bool,
    outputs: Path | None,
    show: Show,
) -> None:
    """Show what was found. Raises BundleError when bundle, answers or a layer failed, UsageError, DataError, RunnerError."""
    if bisect and outputs is not None:
        raise UsageError("--bisect looks into onnxruntime here, --outputs at another engine's answers; give one of them")
    if outputs is not None:
        _judge(bundle, outputs, expect_digest, public_key, show)
    elif bisect:
        _bisect(bundle, expect_digest, public_key, show)
    else:
        _check(bundle, verbose, expect_digest, public_key, show)


def _check(bundle: Path, verbose: bool, expect_digest: str | None, public_key: Path | None, show: Show) -> None:
    from drivekd.runtime import check_bundle
    from drivekd.runtime.check_tables import check_tables

    report = check_bundle(bundle, expect_digest=expect_digest, public_key=public_key)
    for table in check_tables(report, verbose=verbose):
        show(*table)


def _judge(bundle: Path, outputs: Path, expect_digest: str | None, public_key: Path | None, show: Show) -> None:
    from drivekd.runtime.parity.referee import HEADER, judge_outputs

    report = judge_outputs(bundle, outputs, expect_digest=expect_digest, public_key=public_key)
    show(f"{outputs} against the golden tokens of {bundle}", HEADER, report.rows())
    if not report.passed:
        raise BundleError(f"{outputs}: {report.verdict}. Do not drive with that engine")


def _bisect(bundle: Path, expect_digest: str | None, public_key: Path | None, show: Show) -> None:
    from drivekd.export.parity.bisect import HEADER, bisect_bundle

    report = bisect_bundle(bundle, expect_digest=expect_digest, public_key=public_key)
    show(f"layers of {bundle} against the checkpoint's", HEADER, report.table())
    if not report.passed:
        raise BundleError(f"{bundle}: {report.verdict}. {report.suggestion}")
