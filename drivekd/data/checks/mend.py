"""`drivekd data validate --fix`: what can be mended without a guess is written as a new file, what cannot is left out and
counted.

Mended: blanks around texts, the place of picture markers, turns and spellings of other tools, tags in pixels (they become 0..1),
and questions that only repeat an earlier one with the same answer. Left out: whatever has a problem, or shows a picture that has
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drivekd.data.readers import SampleFile
from drivekd.data.writers.records import drivekd_record, write_records
from drivekd.errors import UsageError

from .validate import ValidationReport


@dataclass(frozen=True)
class MendReport:
    """Questions written, repeats taken out, and left out: records with a problem, questions with a bad picture."""

    out: Path
    written: int
    repeats: int
    faulty_records: int
    bad_pictures: int

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(what, how many), for a table."""
        return (
            ("questions written", f"{self.written:,}"),
            ("repeats taken out", f"{self.repeats:,}"),
            ("records left out for a problem", f"{self.faulty_records:,}"),
            ("questions left out for a picture", f"{self.bad_pictures:,}"),
        )


def mend_file(report: ValidationReport, file: SampleFile, out: Path) -> MendReport:
    """Write what `report`, of this very file, found sound to `out`, whole or not at all. Raises UsageError, DataError."""
    if out.exists():
        raise UsageError(f"{out} is there already; --fix writes a new file")
    counts = {"repeats": 0, "faulty": 0, "pictures": 0}
    written = write_records(out, _sound(report, file, out.parent, counts))
    return MendReport(out, written, counts["repeats"], counts["faulty"], counts["pictures"])


def _sound(report: ValidationReport, file: SampleFile, folder: Path, counts: dict[str, int]) -> Iterator[dict[str, object]]:
    place = 0  # of the sample
    for number, record in enumerate(file.records()):
        if number in report.faulty:
            counts["faulty"] += 1
            place += len(record.samples)
            continue
        for sample in record.samples:
            if any(hash(picture) in report.bad_pictures for picture in sample.images):
                counts["pictures"] += 1
            elif place in report.repeated:
                counts["repeats"] += 1
            else:
                yield drivekd_record(sample, folder, record.raw if len(record.samples) == 1 else None)
            place += 1
