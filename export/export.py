"""What `drivekd export` does: a checkpoint becomes a bundle, or a bundle gets its engines, kit or signature.

Only what starts from a checkpoint imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from drivekd.errors import UsageError
from drivekd.runtime.bundle.manifest import MANIFEST_FILE

from .parity.table import ParityTable
from .trt.engines import ENGINE_HEADER, engines_from_bundle

if TYPE_CHECKING:
    from .quantize.sensitivity import SensitivityReport
    from .settings import ExportPlan

PARITY_HEADER = ["graph", "in", "case", "output", "max |difference|", "limit", "rms, relative", "argmax agrees", ""]
KITS = ("edgellm",)
EXCLUSION_BUDGET = 0.1  # of a graph's weights: more would cost the size that quantization is for

Show = Callable[[str, list[str], list[list[str]]], None]  # title, header, rows
Say = Callable[[str], None]


@dataclass(frozen=True)
class Extras:
    """What is done to a bundle, new or not. trt: engines; kit: for another engine; sign: a private key; checkpoint: the kit's."""

    trt: bool = False
    kit: str | None = None
    sign: Path | None = None
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        if self.kit is not None and self.kit not in KITS:
            raise UsageError(f"--kit {self.kit!r} is unknown; this version has: {', '.join(KITS)}")

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do; a checkpoint alone is nothing."""
        return self.trt or self.kit is not None or self.sign is not None


def export_command(
    source: Path, out: Path | None, precision: str | None, overrides: Sequence[str], extras: Extras, *, show: Show, say: Say
) -> None:
    """A checkpoint becomes the bundle `out`; to a bundle is done what extras want. precision: None = fp32.

    Raises UsageError, CheckpointError, DataError, BundleError, ExportError.
    """
    if (source / MANIFEST_FILE).is_file():
        if precision is not None or overrides:
            raise UsageError(f"{source} is a bundle already; --precision and --set are for the checkpoint that it comes from")
        return finish_bundle(source, extras, out=out, show=show, say=say)
    from .settings import plan_from_options

    export_checkpoint(source, out, plan_from_options(precision or "fp32", overrides), extras, show=show, say=say)


def export_checkpoint(checkpoint: Path, out: Path | None, plan: ExportPlan, extras: Extras, *, show: Show, say: Say) -> None:
    """Make the bundle `out`, show parity and accuracy, then do what extras want; a parity table that failed is shown, too.

    Raises UsageError, CheckpointError, DataError, ExportError.
    """
    if out is None:
        raise UsageError("where to? give --out BUNDLE")
    from .bundle import bundle_from_checkpoint

    title = f"parity of {out} with {checkpoint}, worst first"
    report = bundle_from_checkpoint(
        checkpoint,
        out,
        plan=plan,
        on_parity=lambda table: show(title, PARITY_HEADER, parity_rows(table)),
        on_sensitivity=lambda report: _show_sensitivity(report, show, say),
        on_mix=lambda rows: _show_mix(rows, show),
    )
    if report.language:
        from .parity.language import LANGUAGE_HEADER

        show(f"what {plan.label} costs in words", LANGUAGE_HEADER, [row.cells() for row in report.language])
    if plan.rounds_weights and plan.settings.calibration is None and not report.trained:
        say("weights are rounded to the nearest; rounded on what the camera sees they cost less: --set calibration=RECORDS")
    if report.accuracy:
        from .parity.accuracy import ACCURACY_HEADER

        show(f"accuracy on {plan.settings.evaluation}: {plan.label}", ACCURACY_HEADER, [row.cells() for row in report.accuracy])
    elif not plan.is_exact:
        say("no accuracy: give --set evaluation=RECORDS to see what quantization cost on labelled questions")
    if extras.wanted:
        finish_bundle(out, replace(extras, checkpoint=extras.checkpoint or checkpoint), out=None, show=show, say=say)


def finish_bundle(bundle: Path, extras: Extras, *, out: Path | None, show: Show, say: Say) -> None:
    """Sign a bundle, write the kit (to `out`, None = beside the bundle), build the engines: whatever extras want.

    Raises UsageError, BundleError, ExportError.
    """
    if not extras.wanted or (out is not None and extras.kit is None):
        raise UsageError(f"{bundle} is a bundle already; give --trt to build engines in it, --kit edgellm or --sign KEY.pem")
    if extras.sign is not None:
        from .signing import sign_bundle

        say(f"{bundle} is signed by the key {sign_bundle(bundle, extras.sign)}")
    if extras.kit is not None:
        from .edgellm import write_edgellm_kit

        if extras.checkpoint is None:
            raise UsageError(f"the kit holds the checkpoint that {bundle} was made from: give --checkpoint CHECKPOINT")
        say(f"kit: {write_edgellm_kit(bundle, extras.checkpoint, out)}")
    if extras.trt:
        rows = [row.cells() for row in engines_from_bundle(bundle, on_line=say)]
        show(f"engines of {bundle}", ENGINE_HEADER, rows)


def _show_sensitivity(report: SensitivityReport, show: Show, say: Say) -> None:
    from .quantize.sensitivity import HEADER, suggested_exclusions

    show(f"what each part loses alone in {report.precision}, worst first", HEADER, report.table())
    if patterns := suggested_exclusions(report, EXCLUSION_BUDGET):
        say(f"worth leaving as they are: --set 'exclude=[{', '.join(patterns)}]'")


def _show_mix(rows: list[list[str]], show: Show) -> None:
    from .quantize.mix import MIX_HEADER

    show("what 4 bits cost, foreseen, and where 8 are spent", MIX_HEADER, rows)


def parity_rows(table: ParityTable) -> list[list[str]]:
    """The parity table as text under PARITY_HEADER."""
    return [
        [
            row.graph,
            row.precision,
            row.case,
            row.output,
            f"{row.max_abs:.1e}",
            f"{row.limit:.1e}",
            f"{row.rms:.1e}",
            "" if row.argmax_agreement is None else f"{row.argmax_agreement:.1%}",
            "passed" if row.passed else "FAILED",
        ]
        for row in table.rows
    ]
