"""Findings by kind: how many, and where the first are. A file with a million wrong records is a few lines."""

from __future__ import annotations

from dataclasses import dataclass

PLACES = 5  # of each kind that are kept


@dataclass(frozen=True)
class Tally:
    """All findings of one kind. first: the first of them, each "FILE, record N: field: what"."""

    kind: str
    count: int
    first: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        more = f" (first of {self.count:,})" if self.count > 1 else ""
        return f"{self.kind}: {self.first[0]}{more}"

    def to_json(self) -> dict[str, object]:
        """As `drivekd data validate --json` prints it."""
        return {"kind": self.kind, "count": self.count, "first": list(self.first)}


class Findings:
    """Counts findings as they come."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, list[str]] = {}

    def add(self, kind: str, text: str, count: int = 1) -> None:
        """Add a finding, or several of which `text` is one."""
        self._counts[kind] = self._counts.get(kind, 0) + count
        first = self._first.setdefault(kind, [])
        if len(first) < PLACES:
            first.append(text)

    def extend(self, other: Findings) -> None:
        """Add all of another's."""
        for tally in other.tallies():
            for text in tally.first[:-1]:
                self.add(tally.kind, text)
            self.add(tally.kind, tally.first[-1], tally.count - len(tally.first) + 1)

    def tallies(self) -> tuple[Tally, ...]:
        """Each kind, in the order in which they were met."""
        return tuple(Tally(kind, count, tuple(self._first[kind])) for kind, count in self._counts.items())
