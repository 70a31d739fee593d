"""Fields are what the text states, and nothing else."""

from __future__ import annotations

import pytest

from drivekd.runtime.answers.answer import answer_fields

VAN = "near, <c1,CAM_FRONT,0.485,0.625> white van"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (f"Signal: red. Vehicle ahead: {VAN}. Road: straight.", {"signal": "red", "vehicle ahead": VAN, "road": "straight"}),
        (
            "C. Brake to a stop. Reason: the signal is red.",
            {"choice": "C", "answer": "Brake to a stop", "reason": "the signal is red"},
        ),
        ("Yes. A van is near.", {"answer": "yes"}),
        ("No", {"answer": "no"}),
        ("no. Reason: the road is clear.", {"answer": "no", "reason": "the road is clear"}),
        ("(B) Keep going", {"choice": "B", "answer": "Keep going"}),
        ("B", {"choice": "B"}),
        ("B.", {"choice": "B"}),
        ("A white van is ahead.", {}),
        ("Nothing is ahead.", {}),
        ("", {}),
        ("  \n", {}),
        ("Speed: 8.5 m/s. Gap: 0.5", {"speed": "8.5 m/s", "gap": "0.5"}),
        ("Reason: the signal is red. The car stops.", {"reason": "the signal is red. The car stops"}),
        ("Signal: red\nRoad: wet", {"signal": "red", "road": "wet"}),
        ("Object: van. Object: bus.", {"object": "van; bus"}),
        ("At 12:30 the light turned: red", {}),
        ("Signal:", {}),
    ],
)
def test_fields(text: str, fields: dict[str, str]) -> None:
    assert answer_fields(text) == fields


def test_a_truncated_text_gives_what_it_states() -> None:
    text = f"Signal: red. Vehicle ahead: {VAN}. Road: straight."
    for length in range(len(text)):
        for value in answer_fields(text[:length]).values():
            assert value in text
