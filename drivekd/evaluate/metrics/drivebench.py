"""DriveBench as its papers print it: upstream's rule of choices, capabilities as columns, picture settings by group.

The rule is reproduced with its defect: the answer is lower-cased, and the first offered letter, in the order of the options, that
stands in it as a word is its choice. So "Final: C. ... within a lane" chooses A: the article does. Ours is
drivekd.evaluate.extract; both stand side by side, never mixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drivekd.sample import CAPABILITIES

COLUMNS = (*CAPABILITIES, "avg")


def upstream_choice(text: str, offered: Iterable[str]) -> str | None:
    """The letter that upstream's rule takes; offered: letters in the order of the options.

    upstream_choice("Final: C. It stays within a lane", "ABC")  ->  "A"
    """
    lowered = text.lower()
    return next((letter for letter in offered if re.search(rf"\b{letter.lower()}\b", lowered)), None)


@dataclass(frozen=True)
class CapabilityColumns:
    """One row: a value by capability, and their plain mean, None where one of them is missing."""

    name: str
    group: str
    values: Mapping[str, float | None]

    @property
    def avg(self) -> float | None:
        """As Drive-KD averages: every capability counts the same."""
        found = [self.values.get(capability) for capability in CAPABILITIES]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if len(known) == len(found) else None

    def cells(self) -> list[float | None]:
        """In the order of COLUMNS."""
        return [*(self.values.get(capability) for capability in CAPABILITIES), self.avg]


def by_group(settings: Mapping[str, Mapping[str, float]], groups: Mapping[str, Sequence[str]]) -> list[CapabilityColumns]:
    """Rows: each setting outside the groups (clean, NoImage), then each group's mean over those of its settings that are there,
    and these settings. settings: name -> capability -> value. A group that is not complete says so in its name."""
    grouped = {name for names in groups.values() for name in names}
    rows = [CapabilityColumns(name, "", dict(values)) for name, values in settings.items() if name not in grouped]
    for group, names in groups.items():
        there = [name for name in names if name in settings]
        if there:
            complete = "" if len(there) == len(names) else f" ({len(there)} of {len(names)})"
            rows.append(CapabilityColumns(f"{group}{complete}", group, _mean_of([settings[name] for name in there])))
            rows += [CapabilityColumns(name, group, dict(settings[name])) for name in there]
    return rows


def _mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """By capability, None where a setting lacks it."""
    found: dict[str, float | None] = {}
    for capability in CAPABILITIES:
        values = [row[capability] for row in rows if capability in row]
        found[capability] = sum(values) / len(values) if len(values) == len(rows) else None
    return found


# Drive-KD's table on DriveBench: marks of a language model (DeepSeek-V3.2), 0 to 100, and no accuracy.
PAPER = (
    ("GPT-5.1", 45.56, 41.02, 51.94, 46.17),
    ("InternVL3-1B", 33.26, 20.96, 22.36, 25.53),
    ("InternVL3-2B", 37.71, 35.99, 26.19, 33.30),
    ("InternVL3-8B", 40.05, 41.15, 32.77, 37.99),
    ("InternVL3-14B", 39.83, 40.84, 36.35, 39.01),
    ("InternVL3-38B", 34.27, 38.48, 40.65, 37.80),
    ("InternVL3-78B", 42.01, 47.16, 36.31, 41.83),
    ("Drive-KD InternVL3-1B, single teacher", 43.13, 34.32, 52.97, 43.47),
    ("Drive-KD InternVL3-1B, multi-teacher", 43.50, 33.15, 55.51, 44.05),
    ("Drive-KD Qwen2.5-VL-3B, single teacher", 45.59, 34.47, 51.97, 44.01),
    ("Drive-KD Qwen2.5-VL-3B, multi-teacher", 45.63, 36.41, 54.07, 45.37),
)
PAPER_JUDGE = "the paper's table: marks of DeepSeek-V3.2 from 0 to 100, no accuracy; not to be set against ours"
