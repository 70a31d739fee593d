"""An evaluation folder's report files, one a picture setting, and what evaluation.json tells of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.data.json_file import read_json
from drivekd.errors import DataError, UsageError
from drivekd.evaluate.predictions import IDENTITY_FILE

CLEAN = "clean"


@dataclass(frozen=True)
class Reports:
    """by_setting: the report of each picture setting, "clean" first. run: evaluation.json; settings: what several picture
    settings come to; metrics: metrics.json of `drivekd score`. Each is empty for a folder without it."""

    folder: Path
    by_setting: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def main(self) -> Mapping[str, Any]:
        """That of clean pictures; where they were not asked about, the first."""
        return next(iter(self.by_setting.values()))

    @property
    def main_setting(self) -> str:
        """Under which pictures `main` was asked."""
        return next(iter(self.by_setting))

    @property
    def structured(self) -> bool:
        """Whether answers were asked as JSON under the schemas."""
        return bool(self.run.get("is", {}).get("structured"))

    @property
    def questions(self) -> str:
        """What the accuracy counts."""
        return "answers as JSON" if self.structured else "choice and yes/no questions"

    @property
    def name(self) -> str:
        """Of what answered, as a person calls it."""
        path = Path(str(self.main.get("answerer", "?")))
        return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def read_reports(folder: Path) -> Reports:
    """Raises UsageError when there is no report, DataError for one that is none."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted([*folder.glob("report.json"), *folder.glob("report.*.json")]):
        report = read_json(path)
        if not isinstance(report, dict) or not isinstance(report.get("scores"), list):
            raise DataError(f"{path}: expected a report of `drivekd eval`, with scores")
        found[str(report.get("images", CLEAN))] = report
    if not found:
        raise UsageError(f"{folder}: there is no report; give the --out folder of a `drivekd eval` that came to its end")
    ordered = sorted(found, key=lambda name: (name != CLEAN, name))
    metrics = _object(folder / "metrics.json")
    settings = _object(folder / "settings.json") or metrics.get("settings") or {}
    return Reports(folder, {name: found[name] for name in ordered}, _object(folder / IDENTITY_FILE), settings, metrics)


def _object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file. Raises DataError."""
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, as `drivekd eval` and `drivekd score` write it")
    return value
