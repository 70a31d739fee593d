"""Which actions a text tells to take."""

from __future__ import annotations

import pytest

from drivekd.evaluate.extract.actions import actions, probability
from drivekd.evaluate.metrics.actions import action_measures, probability_measure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Brake gently to a stop, slightly offset to the left.", {"brake", "stop", "left"}),
        ("Keep going at the same speed, decelerate gradually without braking.", {"keep", "slow"}),
        ("Decelerate gradually without braking.", {"slow"}),
        ("No such action will lead to a collision.", {"none"}),
        ("Back up, turn right.", {"back", "right"}),
        ("The action is to remain stationary, the reason is to follow the traffic rules, high.", {"stop"}),
        ("Sharp left turn.", {"left"}),
        ("Accelerate and go straight.", {"accelerate", "keep"}),
        ("Accelerating towards the right front.", {"accelerate", "right"}),
        ("Changing to the right lane.", {"right"}),
        ("Proceed with care.", {"keep"}),
        ("Slow down and do not turn left.", {"slow"}),
        ("Never reverse; stop.", {"stop"}),
        ("Avoid accelerating.", set()),
        ("Don't brake, keep going.", {"keep"}),
        ("Rather than braking, slow down.", {"slow"}),
        ("The ego vehicle is not moving.", {"stop"}),
        # Things and places are no actions.
        ("A car in the left lane has its brake lights on.", set()),
        ("There is a stop sign at the right.", set()),
        ("Maintain a safe distance.", set()),
        ("The bus moves left of the truck.", set()),
        ("", set()),
        ("None", set()),
    ],
)
def test_actions(text: str, expected: set[str]) -> None:
    assert actions(text) == expected


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("The reason is to follow the traffic rules, which has a high probability.", "high"),
        ("The probability of this action is low.", "low"),
        ("The action is to stop, the reason is the light, high.", "high"),
        ("Moderate probability.", "medium"),
        ("Low.", "low"),
        ("The probability is high or low.", None),
        ("Drive at high speed.", None),
        ("A low car.", None),
        ("", None),
    ],
)
def test_probability(text: str, level: str | None) -> None:
    assert probability(text) == level


def test_scores_by_hand() -> None:
    """Said {slow, brake} and {left} for {brake} and {left, stop}: two right of three said and three true."""
    found = action_measures([{"slow", "brake"}, {"left"}], [{"brake"}, {"left", "stop"}])
    assert found["action_f1"].total() == pytest.approx(2 * 2 / 6)
    assert found["action_exact"].total() == 0.0
    assert action_measures([{"left", "stop"}], [{"stop", "left"}])["action_exact"].total() == 1.0
    assert probability_measure(["high", None, "low"], ["high", "low", "high"]).total() == pytest.approx(1 / 3)
