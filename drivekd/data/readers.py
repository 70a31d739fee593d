"""Reading data files: Drive-KD records become Samples; DriveLM and DriveBench are converted first (`convert.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from drivekd.data.drivekd_records import ParsedRecord, parse_record
from drivekd.data.foreign import ForeignRecord, Format, detect_format, drivebench_records, drivelm_records
from drivekd.data.json_file import json_type, read_json
from drivekd.errors import DataError
from drivekd.sample import Sample


def read_samples(path: Path, *, image_root: Path | None = None, unlabelled: bool = False) -> list[Sample]:
    """Read a Drive-KD file; record numbers in messages count from 1.

    image_root: what relative image paths start from; the file's own folder when None. unlabelled: a record without an
    answer becomes a Sample with answer None. Image files are not opened (see `check_images`, `validate_file`).
    Raises DataError naming file, record and field of the first fault.
    """
    samples = []
    for parsed in parse_file(path, image_root=image_root, unlabelled=unlabelled):
        if parsed.sample is None:
            raise DataError(parsed.problems[0])
        samples.append(parsed.sample)
    return samples


def parse_file(path: Path, *, image_root: Path | None = None, unlabelled: bool = False) -> Iterator[ParsedRecord]:
    """Every record of a Drive-KD file with its own problems. Raises DataError when the file as a whole is unreadable."""
    document = read_json(path)
    found = detect_format(document, path)
    if found in ("drivelm", "drivebench"):
        raise DataError(f"{path}: this is a {found} file; convert it to Drive-KD records first: drivekd data convert")
    if not isinstance(document, list):
        raise DataError(f"{path}: expected an array of Drive-KD records, found {json_type(document)}")
    root = path.parent if image_root is None else image_root
    for number, record in enumerate(document, start=1):
        yield parse_record(record, source=f"{path}, record {number}", image_root=root, unlabelled=unlabelled)


def check_images(samples: Iterable[Sample]) -> None:
    """Raise DataError naming the first record with an image that does not exist, and how many files are missing."""
    missing: dict[Path, str] = {}
    exists: dict[Path, bool] = {}
    for sample in samples:
        for image in sample.images:
            if image not in exists:
                exists[image] = image.is_file()
            if not exists[image]:
                missing.setdefault(image, sample.source)
    if missing:
        image, source = next(iter(missing.items()))
        raise DataError(f"{source}: images: no file {image} ({len(missing)} of {len(exists)} image files are missing)")


def foreign_records(document: object, path: Path, file_format: Format) -> list[ForeignRecord]:
    """The questions of a DriveLM or DriveBench document. Raises DataError for another format."""
    if file_format == "drivelm":
        return list(drivelm_records(document, path))
    if file_format == "drivebench":
        return list(drivebench_records(document, path))
    raise DataError(f"{path}: this is a {file_format} file; expected DriveLM or DriveBench questions")
