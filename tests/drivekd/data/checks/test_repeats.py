"""Repeats by hashes are those of a plain comparison."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from drivekd.data.checks.repeats import RepeatCollector
from drivekd.sample import Sample


def sample(question: str, answer: str | None, picture: str) -> Sample:
    return Sample("here", "planning", question, answer, (Path(picture),))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", None]), st.sampled_from("12")), max_size=12))
def test_repeats_are_those_of_a_plain_loop(records: list[tuple[str, str | None, str]]) -> None:
    collector = RepeatCollector()
    duplicates, contradictions = [], []
    for place, (question, answer, picture) in enumerate(records):
        collector.add(sample(question, answer, picture))
        before = [n for n in range(place) if (records[n][0], records[n][2]) == (question, picture)]
        same = [n for n in before if records[n][1] == answer]
        if same:
            duplicates.append([place, same[0]])
        elif before:
            contradictions.append([place, before[0]])
    found = collector.repeats()
    assert (found.duplicates.tolist(), found.contradictions.tolist()) == (duplicates, contradictions)
