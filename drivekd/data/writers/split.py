"""One file becomes train.json, validation.json and test.json that share no scene: what `drivekd data split` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drivekd.data.readers import SampleFile
from drivekd.errors import DataError, UsageError
from drivekd.files import whole_file
from drivekd.sample import CAPABILITIES

from .groups import GroupCollector, Groups, assign
from .records import RecordWriter, drivekd_record, open_to_write


@dataclass(frozen=True)
class SplitReport:
    """records: by file and capability. groups: of each file; grouped_by: what told the groups, with how many questions each."""

    out: Path
    records: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, int]
    grouped_by: Mapping[str, int]

    @property
    def header(self) -> tuple[str, ...]:
        """Of the rows."""
        return ("", *CAPABILITIES, "questions", "groups")

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """A file a row, for a table."""
        return tuple(
            (name, *(f"{found.get(c, 0):,}" for c in CAPABILITIES), f"{sum(found.values()):,}", f"{self.groups[name]:,}")
            for name, found in self.records.items()
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What kept questions together, and what a part lacks."""
        by = ", ".join(f"{count:,} by {what}" for what, count in self.grouped_by.items())
        missing = [
            f"{name} has no {capability} question"
            for capability in CAPABILITIES
            if any(found.get(capability) for found in self.records.values())
            for name, found in self.records.items()
            if not found.get(capability)
        ]
        return (f"questions kept together: {by}", *missing)


def split_file(
    source: Path, out: Path, *, test: float, validation: float = 0.0, seed: int = 0, image_root: Path | None = None
) -> SplitReport:
    """Write Drive-KD records into train.json, test.json and, for a share above 0, validation.json of `out`; all or none of them.

    test, validation: shares of the questions, reached as nearly as whole scenes allow. Questions without a scene are kept
    together by frame or by pictures. image_root: what relative picture paths start from. Raises UsageError for shares that leave
    nothing, or a file that is there already; DataError for a faulty record, or with fewer scenes than files.
    """
    shares = _shares(test, validation)
    targets = [out / name for name in shares]
    there = [target for target in targets if target.exists()]
    if there:
        raise UsageError(f"{there[0]} is there already; give a new --out")
    file = SampleFile(source, image_root=image_root, unlabelled=True)
    groups = _groups(file)
    if len(groups.names) < len(shares):
        raise DataError(
            f"{source}: {len(shares)} files need as many scenes (or frames, where no scene is named); "
            f"the file has {len(groups.names)}"
        )
    parts = assign(groups, np.array(list(shares.values())), seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        records = _write(file, targets, parts[groups.of_sample].tolist())
    except OSError as error:
        raise DataError(f"{out}: files cannot be written ({error.strerror or error})") from error
    order = [name for name in ("train.json", "validation.json", "test.json") if name in shares]
    num_groups = {name: int((parts == place).sum()) for place, name in enumerate(shares)}
    return SplitReport(out, {name: records[name] for name in order}, num_groups, groups.by)


def _shares(test: float, validation: float) -> dict[str, float]:
    """File name -> share, the smallest files first: they need their groups before there are none left to choose from."""
    if not 0 < test < 1 or not 0 <= validation < 1 or test + validation >= 1:
        raise UsageError(
            f"shares: expected --test above 0, --validation 0 or more, and together below 1; found {test:g} and {validation:g}"
        )
    found = {"test.json": test, **({"validation.json": validation} if validation else {})}
    return {**found, "train.json": 1 - test - validation}


def _groups(file: SampleFile) -> Groups:
    collector = GroupCollector()
    for record in file.records():
        if record.problems:
            raise DataError(f"{record.problems[0]}; drivekd data validate names every problem, --fix leaves out what is faulty")
        for sample in record.samples:
            collector.add(sample)
    return collector.groups()


def _write(file: SampleFile, targets: list[Path], parts: list[int]) -> dict[str, Counter[str]]:
    """Every sample to the file of its part."""
    counts: dict[str, Counter[str]] = {target.name: Counter() for target in targets}
    place = 0
    with ExitStack() as stack:
        writers = []
        for target in targets:
            text = open_to_write(stack.enter_context(whole_file(target, shared=True)), target.name)
            writers.append(RecordWriter(stack.enter_context(text), target.name))
        for record in file.records():
            for sample in record.samples:
                target = targets[parts[place]]
                raw = record.raw if len(record.samples) == 1 else None
                writers[parts[place]].write(drivekd_record(sample, target.parent, raw))
                counts[target.name][sample.capability] += 1
                place += 1
        for writer in writers:
            writer.close()
    return counts
