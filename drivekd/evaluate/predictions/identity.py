"""What an evaluation is of, so that it goes on with that alone: evaluation.json.

"is" decides: model, data and settings that answers depend on. "told" is for people: names, versions, when it began.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivekd.errors import DataError, UsageError
from drivekd.files import refuse_non_empty, write_whole

IDENTITY_FILE = "evaluation.json"
FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """decides: JSON values by key. told: anything else worth keeping."""

    decides: dict[str, Any]
    told: dict[str, Any] = field(default_factory=dict)

    def claim(self, folder: Path) -> bool:
        """Make the folder this evaluation's; True when it was before, so that its answers count.

        Raises UsageError when it holds an evaluation of another thing, naming what differs, or other files.
        """
        path = folder / IDENTITY_FILE
        known = path.is_file()
        if not known:
            self._begin(folder, path)
        if different := _differences(read_identity(path).decides, self.decides):
            raise UsageError(f"{folder} holds an evaluation of another thing: {'; '.join(different)}. Give a new --out")
        return known

    def _begin(self, folder: Path, path: Path) -> None:
        """Shards may begin at once: each writes the same file."""
        try:
            refuse_non_empty(folder, "give a new --out")
        except UsageError:
            if path.is_file():  # just now
                return
            raise
        folder.mkdir(parents=True, exist_ok=True)
        value = {"format": FORMAT, "is": self.decides, "told": self.told}
        write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n", shared=True, beside=folder)


def read_identity(path: Path) -> Identity:
    """Read evaluation.json. Raises DataError."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("is"), dict):
        raise DataError(f"{path}: expected an evaluation.json of format {FORMAT}, as drivekd eval writes it")
    return Identity(value["is"], value.get("told") or {})


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """ "max_new_tokens is 512, was 24", one for each key."""
    keys = [*before, *(key for key in now if key not in before)]
    return [f"{key} is {_shown(now, key)}, was {_shown(before, key)}" for key in keys if before.get(key) != now.get(key)]


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not stated"
