"""A Sample as a Drive-KD record, and files of records that are written one record at a time, whole or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from drivekd.data.readers.markers import IMAGE_MARKER
from drivekd.errors import DataError
from drivekd.files import whole_file
from drivekd.sample import Sample

_READ = (
    "messages",
    "conversations",
    "structured",
    "images",
    "image",
    "question_type",
    "meta",
    "id",
    "system",
    "structured",
)  # of a raw record: said anew


def drivekd_record(sample: Sample, folder: Path, raw: object = None) -> dict[str, object]:
    """The record that reads back as `sample` from a file in `folder`.

    raw: the record of messages that the sample was read from; keys of it that are not read are kept, and meta.ego_speed_mps.
    """
    messages = [{"role": "user", "content": IMAGE_MARKER * len(sample.images) + sample.question}]
    if sample.answer is not None:
        messages.append({"role": "assistant", "content": sample.answer})
    other = raw if isinstance(raw, dict) and ("messages" in raw or "conversations" in raw) else {}
    return {
        "messages": messages,
        "images": [written_path(image, folder) for image in sample.images],
        "question_type": sample.capability,
        "meta": _meta(sample, other.get("meta")),
        **({} if sample.structured is None else {"structured": json.loads(sample.structured)}),
        **({} if sample.structured is None else {"structured": json.loads(sample.structured)}),
        **{key: value for key, value in other.items() if key not in _READ},
    }


def _meta(sample: Sample, raw: object) -> dict[str, object]:
    known: dict[str, object] = {"kind": sample.answer_form}
    named = {"topic": sample.topic, "scene": sample.scene, "frame": sample.frame, "id": sample.id}
    known |= {key: value for key, value in named.items() if value}
    known |= {key: list(value) for key, value in (("cameras", sample.cameras), ("tag", sample.tag)) if value}
    known |= {} if sample.hop is None else {"hop": sample.hop}
    speed = raw.get("ego_speed_mps") if isinstance(raw, dict) else None
    return known | ({} if speed is None else {"ego_speed_mps": speed})


def written_path(image: Path, folder: Path) -> str:
    """Relative to `folder` where the image lies below it, so that both can move together; else absolute."""
    absolute, image = folder.absolute(), image.absolute()
    return (image.relative_to(absolute) if image.is_relative_to(absolute) else image).as_posix()


def are_lines(name: str) -> bool:
    """Whether a file of this name holds JSON Lines."""
    return name.removesuffix(".gz").endswith((".jsonl", ".ndjson"))


class RecordWriter:
    """Writes records into an open file: an array with a record a line, or JSON Lines where the name ends in .jsonl or .ndjson."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        self._lines = are_lines(name)
        self.count = 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        if not self._lines:
            self._file.write(",\n" if self.count else "[\n")
        self._file.write(json.dumps(record, allow_nan=False))
        self._file.write("\n" if self._lines else "")
        self.count += 1

    def close(self) -> None:
        """End the array."""
        if not self._lines:
            self._file.write("\n]\n" if self.count else "[]\n")


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write records as they come to `path`, whole or not at all, packed where it ends in .gz; makes its folder. Returns how many.

    Raises DataError when the file cannot be written, or for a value that JSON has not; whatever `records` raises passes through.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, shared=True) as temporary, open_to_write(temporary, path.name) as text:
            writer = RecordWriter(text, path.name)
            for record in records:
                writer.write(record)
            writer.close()
    except OSError as error:
        raise DataError(f"{path}: file cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{path}: a record holds a value that JSON has not ({error})") from error
    return writer.count


def write_document(path: Path, value: object) -> None:
    """Write one JSON value to `path`, whole or not at all, packed where it ends in .gz; makes its folder. Raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, shared=True) as temporary, open_to_write(temporary, path.name) as text:
            json.dump(value, text, indent=1, allow_nan=False)
            text.write("\n")
    except OSError as error:
        raise DataError(f"{path}: file cannot be written ({error.strerror or error})") from error


def open_to_write(path: Path, name: str) -> TextIO:
    """Open a text file to write; gzip where `name`, the name that it will have, ends in .gz."""
    if name.endswith(".gz"):
        return cast(TextIO, gzip.open(path, "wt", encoding="utf-8", newline="\n"))
    return path.open("w", encoding="utf-8", newline="\n")
