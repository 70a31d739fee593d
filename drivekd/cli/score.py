"""`drivekd score`: the answers of one run beside their records, or several runs beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from drivekd.errors import UsageError


def score_command(
    predictions: Sequence[Path],
    records: Path | None,
    out: Path,
    compat: str | None,
    reference: Path | None,
    image_root: Path | None,
    *,
    show: Callable[[str, list[str], list[list[str]]], None],
    say: Callable[[str], None],
) -> None:
    """One path is scored on `records`; two or more are evaluations, compared with the first. Writes a sheet into `out`.

    Raises UsageError (options that do not go together), DataError.
    """
    if len(predictions) > 1:
        if any(option is not None for option in (records, compat, reference, image_root)):
            raise UsageError(
                "several folders are compared by what they hold; --data, --compat, --reference, --image-root are for one"
            )
        from drivekd.evaluate.sheet.comparison import write_comparison

        compared = write_comparison(predictions, out)
        for table in compared.tables:
            show(*table)
        for note in compared.notes:
            say(note)
        return say(f"score sheet: {compared.page}")
    if records is None:
        raise UsageError("--data is missing: the records that these answers are to; or give a second folder to compare with")
    from drivekd.evaluate.foreign.command import ScoreRequest, score_file
    from drivekd.evaluate.sheet.sheet import write_sheet

    found = score_file(ScoreRequest(predictions[0], records, out, compat, reference, image_root))
    for table in found.tables:
        show(*table)
    say(f"score sheet: {write_sheet(out)}")
    for note in found.notes:
        say(note)
