"""One grammar of named parts, whoever asks: the car's fields and the evaluation's schema validity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.evaluate.extract.named_fields import field_names
from drivekd.runtime.answers.answer import answer_fields
from drivekd.runtime.answers.named_parts import named_parts


@pytest.mark.parametrize(
    ("text", "head", "parts"),
    [
        ("", "", ()),
        ("A van. It waits.", "A van. It waits.", ()),
        ("B. Stop. Reason: it is red.", "B. Stop. ", (("Reason", "it is red."),)),
        ("- Action: stop\n* **Reason:** red", "", (("Action", "stop\n"), ("Reason", "red"))),
        ("**Final** : A\n  Position & orientation: left", "", (("Final", "A\n"), ("Position & orientation", "left"))),
        ("Self-vehicle action:stop;  Road: wet", "", (("Self-vehicle action", "stop; "), ("Road", "wet"))),
        ("Signal: red. Road:", "", (("Signal", "red. "), ("Road", ""))),
        ("B: Turn left", "B: Turn left", ()),
        ("Yes - Reason: the light is red.", "Yes - Reason: the light is red.", ()),
        ("See Http://a.b", "See Http://a.b", ()),
        ("Http://a.b", "Http://a.b", ()),
        (
            "Objects:\n- Car: left.\n- Van: right.\nFinal: A",
            "",
            (("Objects", "- Car: left.\n- Van: right.\n"), ("Car", "left.\n"), ("Van", "right.\n"), ("Final", "A")),
        ),
        ("Object:\nFinal: A", "", (("Object", ""), ("Final", "A"))),
        ("So it should do this: stop", "So it should do this: stop", ()),
        ("At 12:30 it waits, Signal: red", "At 12:30 it waits, Signal: red", ()),
    ],
)
def test_parts(text: str, head: str, parts: tuple[tuple[str, str], ...]) -> None:
    assert named_parts(text) == (head, parts)


def test_an_options_letter_is_no_name() -> None:
    assert answer_fields("B: Turn left. Reason: red") == {"choice": "B", "answer": "Turn left", "reason": "red"}


def test_a_part_without_value_is_named_but_states_nothing() -> None:
    assert field_names("Final: A. Object:") == ("Final", "Object")
    assert answer_fields("Final: A. Object:") == {"final": "A"}


@given(st.text("ABab -*:.;&\n", max_size=40))
def test_the_car_names_what_the_evaluation_finds(text: str) -> None:
    assert set(answer_fields(text)) - {"choice", "answer"} <= {name.lower() for name in field_names(text.strip())}
