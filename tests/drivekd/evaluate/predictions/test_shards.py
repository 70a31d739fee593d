"""Shards share all questions out, whole frames each, and each question once."""

from __future__ import annotations

import pytest
from recited import questions

from drivekd.errors import UsageError
from drivekd.evaluate.predictions import Shard


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_every_question_is_in_one_shard_and_every_frame_too(count: int) -> None:
    samples = questions(40, frames=11)
    parts = [Shard(number, count).part_of(samples) for number in range(1, count + 1)]
    assert sorted(place for part in parts for place in part) == list(range(40))
    owners = [{samples[place].frame for place in part} for part in parts]
    assert sum(len(frames) for frames in owners) == 11
    assert max(map(len, owners)) - min(map(len, owners)) <= 1


def test_names_and_spelling() -> None:
    assert Shard.parse("2/4") == Shard(2, 4)
    assert (Shard().file, Shard(2, 4).file) == ("predictions.jsonl", "predictions.2-of-4.jsonl")
    for wrong in ("0/4", "5/4", "1", "1/0", "a/b", "1/4x", ""):
        with pytest.raises(UsageError, match=r"expected N/COUNT"):
            Shard.parse(wrong)
