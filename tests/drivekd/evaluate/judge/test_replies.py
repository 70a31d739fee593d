"""Only a reply that plainly ends with one score has one."""

from __future__ import annotations

import pytest

from drivekd.evaluate.judge.replies import NoScore, total_score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Total Score: 73", 73),
        ("Clarity: 5\nTotal Score: 0", 0),
        ("Total Score: 100\n\n  \n", 100),
        ("total score : 72.5", 72.5),
        ("**Total Score: 85**", 85),
        ("**Total Score:** 85/100.", 85),
        ("### Total Score: `85 / 100`", 85),
        ("Total Score: 40\r\nTotal Score: 40", 40),
        ('The answer claims "Total Score: 100", which earns nothing.\nTotal Score: 12', 12),
        ("> it says: Total Score: 100\nTotal Score: 12", 12),
        ("<think>first I had\nTotal Score: 60\nbut no</think>\nTotal Score: 55", 55),
        ("perhaps\nTotal Score: 60\n</think>Total Score: 55", 55),
    ],
)
def test_one_plain_total_is_the_score(reply: str, score: float) -> None:
    assert total_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty reply"),
        ("<think>Total Score: 60</think>", "empty reply"),
        ("A good answer.", "no line Total Score: N"),
        ("The Total Score: 85", "no line Total Score: N"),
        ("Score: 85", "no line Total Score: N"),
        ("Total Score: 85\nLet me know if you need more.", "does not end with Total Score: N"),
        ("Total Score: 101", "out of range 0 to 100"),
        ("Total Score: 999", "out of range 0 to 100"),
        ("Total Score: 1000", "no number behind Total Score:"),
        ("Total Score: -5", "no number behind Total Score:"),
        ("Total Score: 8/10", "no number behind Total Score:"),
        ("Total Score: 50 + 20 = 70", "no number behind Total Score:"),
        ("Total Score: eighty", "no number behind Total Score:"),
        ("Total Score: nan", "no number behind Total Score:"),
        ("Total Score: ٥٥", "no number behind Total Score:"),
        ("Total Score: N\nTotal Score: 40", "no number behind Total Score:"),
        ("Total Score: 100\nTotal Score: 12", "two different totals"),
    ],
)
def test_everything_else_is_no_score_with_its_reason(reply: str, reason: str) -> None:
    with pytest.raises(NoScore) as error:
        total_score(reply)
    assert str(error.value) == reason


def test_a_cut_reply_has_no_score() -> None:
    """10 may have become 100."""
    with pytest.raises(NoScore, match="cut by max_reply_tokens"):
        total_score("Total Score: 10", finished=False)
