"""Texts that invite a guess. None is taken: either the text states one answer, or it has none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.evaluate.extract import choice, yes_no
from drivekd.evaluate.extract.labels import label_letter, label_yes_no

LANE = "Which lane is free? Options: A. Left lane. B. Middle lane. C. Right lane. D. None of them."
LIGHT = "Is there a red light? Options: A. Yes. B. No."
MOVING = (
    "What is the moving status of object <c1,CAM_BACK,1088.3,497.5>? "
    "Please select the correct answer from the following options: A. Going ahead. B. Stopped. C. Back up. D. Turn left."
)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # Denied.
        ("Option A is wrong", None),
        ("The answer is not B.", None),
        ("Not option C.", None),
        ("It isn't option B.", None),
        ("B is incorrect.", None),
        ("B. is wrong.", None),
        ("Answer: B is not correct.", None),
        ("Neither A nor B.", None),
        ("Every option except C.", None),
        ("The middle lane is not free.", None),
        ("The middle lane is free. The middle lane is not free.", None),
        ("Think: B. Middle lane is blocked.", None),
        # Several.
        ("A, B and C are possible", None),
        ("A, C", None),
        ("A/B", None),
        ("B or C.", None),
        ("Answer: A and B. Left lane", None),
        ("Either option B or option C.", None),
        ("options a and b", None),
        ("B. Middle lane. C. Right lane.", None),
        ("Answer: B. Final answer: C.", None),
        ("B. Middle lane.\nFinal answer: C", None),
        ("B\nC", None),
        ('{"answer": "B", "answer": "C"}', None),
        ('{"answer": ["B", "C"]}', None),
        ("**B** or **C**", None),
        # Doubted, asked, conditional.
        ("Is it B?", None),
        ("Answer: B?", None),
        ("Maybe option B.", None),
        ("It might be the left lane.", None),
        ("If the bus leaves, the answer is B.", None),
        ("I am not sure whether option B is right.", None),
        # Spoken of, not for.
        ("Avoid option B.", None),
        ("Eliminate option B.", None),
        ("We reject option B.", None),
        ("Consider option B.", None),
        ("Let us look at option B first.", None),
        ("Unlike option B, the right side is blocked.", None),
        ("Option B fails.", None),
        ("Option B lacks evidence.", None),
        ("Option B contradicts the picture.", None),
        ("Answer B is what a careless driver would pick.", None),
        ("B - no way.", None),
        ("A) no B) yes", None),
        ("The wrong answer is B.", None),
        ("I doubt that the answer is B.", None),
        ("The answer is B if the bus leaves.", None),
        ("B, unless the bus leaves.", None),
        ("Answer: A. B. C. D.", None),
        ("Anything but the middle lane.", None),
        ("It used to be the left lane.", None),
        ("Option B is the best one.", "B"),
        ("Option B seems most likely.", "B"),
        ("option b middle lane", "B"),
        ("Considering the bus, the answer is B.", "B"),
        # Quoting the question is no answer; an answer behind the quote is.
        (LANE, None),
        ("A. Left lane. B. Middle lane. C. Right lane. D. None of them.", None),
        (f"{LANE}\nAnswer: C", "C"),
        ("A. Left lane: a bus. B. Middle lane: free. Final answer: B", "B"),
        # Not letters of options.
        ("A car is in the way.", None),
        ("I see a bus.", None),
        ("The bus has the sign of line B.", None),
        ("Answer: F", None),
        ("Option E", None),
        ("Answer: А", None),  # Cyrillic
        ("Α. Left", None),  # Greek
        ("a", None),
        ("Vitamin B is healthy", None),
        ("", None),
        ("None", None),
        ("null", None),
        ("nan", None),
        ("\n\n", None),
        ("{}", None),
        ("[" * 100_000, None),
        ('{"answer": null}', None),
        ('{"answer": 2}', None),
        ('{"reason": "Option B"}', None),
        # A letter and another option's words contradict each other.
        ("A. Right lane.", None),
        ("Final: B. Left lane.", None),
        # Stated, in many manners.
        ("option d", "D"),
        ("Option (d)", "D"),
        ("answer: b", "B"),
        ("the answer is c.", "C"),
        ("A bus blocks the left lane, so B.", "B"),
        ("The bus blocks two lanes; therefore, C", "C"),
        ("A, Explanation: the bus is in the middle.", "A"),
        ("D. Bit error", "D"),
        ("(B)", "B"),
        ("(b)", "B"),
        ("B)", "B"),
        ("b)", "B"),
        ("**B**", "B"),
        ("B - it is free", "B"),
        ("B: Middle lane", "B"),
        ("B Middle lane", "B"),
        ("A Left lane", "A"),
        ("Ｂ", "B"),
        ("Answer：Ｂ．", "B"),
        ("（Ｂ）", "B"),
        ('{"answer": "B"}', "B"),
        ('```json\n{"Answer": "B. Middle lane"}\n```', "B"),
        ('{"result": {"final_answer": "b)"}, "A": "wrong"}', "B"),
        ("B. B. B.", "B"),
        ("B\nAnswer: B", "B"),
        ("The lane is free.\n\nB", "B"),
        ("$\\boxed{B}$", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("<answer>C</answer>", "C"),
        ("### Answer\nB", "B"),
        ("B is the correct answer.", "B"),
        ("I choose C.", "C"),
        ("Answer: B, because the car is not turning.", "B"),
        ("It is not raining, so the answer is B.", "B"),
        ("The middle lane is free.", "B"),
        ("It is not the left lane; it is the right lane.", "C"),
    ],
)
def test_choice_is_never_guessed(text: str, letter: str | None) -> None:
    assert choice(text, LANE) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("There is a stop sign.", None),
        ("Stop sign on the left.", None),
        ("Turn behind the stop line", None),
        ("The red car waits.", None),
        ("A green-ish light", None),
        ("Red of all things", None),
        ("Stop.", "A"),
        ("It should stop for the van.", "A"),
        ("Stop immediately", "A"),
        ("The light is red.", "B"),
        ("It is a red light.", "B"),
        ("It was red before.", None),
        ("It was red a moment ago, now it is green.", "C"),
        ("The light turned red a moment ago.", "B"),
        ("It is red as before.", "B"),
        ("There is a bus stop.", None),
        ("The stop is on the right", None),
        ("It should stop turning left.", None),
        ("It should stop moving.", "A"),
        ("It comes to a stop", "A"),
    ],
)
def test_a_word_that_describes_another_thing_is_not_chosen(text: str, letter: str | None) -> None:
    assert choice(text, "What does the light say? Options: A. Stop. B. Red. C. Green.") == letter


WAYS = "Options: A. Turn left. B. Turn right. C. Stop."
EGO = f"What should the ego vehicle do? {WAYS}"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A car ahead will turn right.", None),
        ("A car ahead is going to turn right.", None),
        ("A car ahead is slowing and will turn right.", None),
        ("The car ahead, a red one, will turn right.", None),
        ("The car ahead should stop.", None),
        ("The truck in the left lane stops.", None),
        ("Another vehicle may turn right", None),
        ("That car will turn right.", None),
        ("The red car will stop.", None),
        ("The pedestrian will stop.", None),
        ("The taxi ahead will turn left.", None),
        ("The oncoming van stops", None),
        ("The car should stop turning right.", None),
        ("The stop is far.", None),
        ("The car ahead turns. Turn right", "B"),
        ("The car should turn right.", "B"),
        ("The ego car will turn left.", "A"),
        ("The self-driving car should turn right", "B"),
        ("A driver should stop.", "C"),
        ("The car should turn right, a car ahead stands still.", "B"),
        ("A bus is ahead, so turn right.", "B"),
        ("A car ahead means stop.", "C"),
        ("Yield to a car ahead and turn right", "B"),
        ("Follow the car ahead to turn left", "A"),
        ("To avoid a car turn right.", "B"),
        ("Because of the car ahead it must stop.", "C"),
        ("The car should stop behind the bus.", "C"),
        ("A pedestrian crosses, it should stop", "C"),
        ("Stop because a pedestrian stepped out earlier.", "C"),
        ("It should stop as the light turned red a moment ago.", "C"),
        ("Turn right as before.", "B"),
        ("The best action is the stop.", "C"),
        # A letter behind "stop" is a letter.
        ("C. Stop\nC", "C"),
        ("The ego vehicle must stop\nC", "C"),
        ("A pedestrian has stopped\nFinal answer: B", "B"),
        ("Action: stop\nAnswer: C", "C"),
    ],
)
def test_what_another_road_user_does_is_not_what_the_ego_vehicle_should_do(text: str, letter: str | None) -> None:
    assert choice(text, EGO) == letter


def test_a_text_that_repeats_itself_is_read_each_time_anew() -> None:
    assert choice("a car ahead will stop " * 3000, EGO) is None
    assert choice("the car should stop " * 3000, EGO) == "C"


@pytest.mark.parametrize(
    "question", ["What is the safest action?", "What should I do?", "What should the self-driving vehicle do?"]
)
def test_the_ego_vehicle_is_asked_about_in_other_words(question: str) -> None:
    assert choice("The car ahead will turn right.", f"{question} {WAYS}") is None
    assert choice("Turn right.", f"{question} {WAYS}") == "B"


@pytest.mark.parametrize(
    ("question", "text", "letter"),
    [
        ("What is the moving status of the car ahead of the ego vehicle?", "The car ahead is stopped.", "C"),
        ("What is the moving status of the car ahead of the ego vehicle?", "The car in front is going ahead.", "A"),
        ("What will object <c1,CAM_FRONT,1,2> do while you drive on?", "An oncoming car is going ahead.", "A"),
        ("What is the action of the truck?", "The truck is stopped.", "C"),
    ],
)
def test_a_question_about_others_that_names_the_ego_vehicle(question: str, text: str, letter: str) -> None:
    assert choice(text, f"{question} Options: A. Going ahead. B. Turn left. C. Stopped.") == letter


def test_options_that_are_no_actions_are_anybodys() -> None:
    question = "Why should the ego vehicle stop? Options: A. Red light. B. Pedestrian. C. Stop sign."
    assert choice("A car stands at the red light.", question) == "A"
    assert choice("The leading vehicle is black.", "What colour has the car ahead of you? Options: A. White. B. Black.") == "B"


def test_what_another_road_user_does_answers_a_question_about_it() -> None:
    question = "What is the moving status of the car ahead? Options: A. Turn left. B. Turn right. C. Stop."
    assert choice("A car ahead will turn right.", question) == "B"
    assert choice("The car ahead should stop turning right.", question) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("There is no red light", None),
        ("No red light is there.", None),
        ("Yes and no.", None),
        ("No.", "B"),
        ("Yes, it is red.", "A"),
        ("A. Yes", "A"),
        ("B. Yes", None),
    ],
)
def test_options_yes_and_no_are_read_as_yes_and_no(text: str, letter: str | None) -> None:
    assert choice(text, LIGHT) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ('The moving status of object <c1,CAM_BACK,1088.3,497.5> is "Back up."', "C"),
        ("The moving status of object <c1,CAM_BACK,1088.3,497.5> is unclear.", None),
    ],
)
def test_real_manners_of_answering(text: str, letter: str | None) -> None:
    assert choice(text, MOVING) == letter


def test_an_article_before_a_word_that_begins_like_an_option_is_no_letter() -> None:
    question = "Which object is nearest? Options: A. Car. B. Truck."
    assert [choice(text, question) for text in ("A cargo bike", "A car-like thing", "A Car")] == [None, None, "A"]


def test_an_option_that_the_question_names_is_not_chosen_by_repeating_it() -> None:
    question = "Is the moving car near? Options: A. Moving. B. Stopped."
    assert choice("The moving car is hard to see.", question) is None
    assert choice("Moving.", question) == "A"
    assert choice("It is stopped.", question) == "B"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes and no.", None),
        ("Yes or no", None),
        ("Yes/No", None),
        ("Yes. Final answer: no", None),
        ("There is no red light", None),
        ("No entry.", None),
        ("No such action will lead to a collision.", None),
        ("No cars are near", None),
        ("Yes?", None),
        ("Yes is wrong", None),
        ("No, wait, yes.", None),
        ("Yes, but actually no.", None),
        ("Yes. On second thought, no.", None),
        ("Final answer: no. yes.", None),
        ("yes - no", None),
        ("Yes (or no).", None),
        ("Yes, that is wrong. It is no.", None),
        ("I doubt that the answer is yes.", None),
        ("It is not the case that the answer is yes.", None),
        ("The wrong answer is no.", None),
        ("If the light were green, the answer is yes.", None),
        ("The answer is yes if it rains.", None),
        ("Yes is what I would say if I saw it.", None),
        ("Yes: 30%. No: 70%.", None),
        ("Yes 50%", None),
        ("No. 5 is a van.", None),
        ("Answer no. 3", None),
        ("Yes-man", None),
        ("No-one is near.", None),
        ("Yes, if", None),
        ("Yes is the correct answer.", "yes"),
        ("It is not raining, so the answer is yes.", "yes"),
        ("There is no van.\nFinal answer: no", "no"),
        ("The answer is not yes.", None),
        ("Is the answer yes or no?", None),
        ('{"answer": "yes", "final": "no"}', None),
        ("None", None),
        ("nope", None),
        ("Nо.", None),  # Cyrillic o
        ("No, Explanation: it is a van.", "no"),
        ("No it is not", "no"),
        ("NO", "no"),
        ("Ｙｅｓ", "yes"),
        ("Yes, no car is near.", "yes"),
        ("It is green, so no.", "no"),
        ('{"answer": "Yes."}', "yes"),
        ("Answer: **Yes**", "yes"),
        ("The light is red.\nYes", "yes"),
    ],
)
def test_yes_no_is_never_guessed(text: str, said: str | None) -> None:
    assert yes_no(text) == said


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B, Explanation: option A is wrong, because the answer is not A.", "B"),
        ("D. Bit error", "D"),
        ("(C)", "C"),
        ("A, C", None),
        ("A and C", None),
        ("A, B and C", None),
        ("A; C.", None),
        ("Right lane.", "C"),
        ("Upwards.", None),
    ],
)
def test_a_label_begins_with_its_letter_and_several_letters_are_none(answer: str, letter: str | None) -> None:
    assert label_letter(answer, LANE) == letter


@pytest.mark.parametrize(
    ("answer", "said"),
    [("No, Explanation: yes it is a van", "no"), ("Yes.", "yes"), ("Yes, no", None), ("No entry.", None), ("Damp.", None)],
)
def test_a_yes_no_label(answer: str, said: str | None) -> None:
    assert label_yes_no(answer) == said


MARKS = (
    "Answer: {}",
    "Final answer: {}.",
    "The answer is {}.",
    "Option {}.",
    "option {}",
    "({})",
    "**{}**",
    "{}. ",
    "{}\n",
    "so {}.",
)
FILLERS = (
    " ",
    "\n",
    " It is near. ",
    " and ",
    " or ",
    ", ",
    "; no, ",
    " because a car turns. ",
    "\n\n",
    " The light is red.\n",
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([(a, b) for a in "ABCD" for b in "ABCD" if a != b]),
    st.sampled_from(MARKS),
    st.sampled_from(MARKS),
    st.sampled_from(FILLERS),
    st.sampled_from(("", "Well. ", "The car is not near. ", "\n")),
    st.sampled_from(("", " It is free.", "\nThe bus leaves.", " Yes.")),
)
def test_two_marked_letters_are_never_decided(
    letters: tuple[str, str], first: str, second: str, between: str, before: str, behind: str
) -> None:
    text = before + first.format(letters[0]) + between + second.format(letters[1]) + behind
    assert choice(text, LANE) is None


@given(st.text(max_size=80), st.sampled_from((LANE, LIGHT, MOVING, "Which?")))
def test_any_text_gives_an_offered_letter_or_none(text: str, question: str) -> None:
    assert choice(text, question) in {None, *"ABCDEFGH"}
    assert yes_no(text) in {None, "yes", "no"}


@pytest.mark.parametrize("piece", ["A, ", "(B) ", "a left lane ", "B. ", "\n", "A\n", "Answer: A is ", "no ", "is not ", "["])
def test_a_model_that_repeats_itself_costs_linear_time(piece: str) -> None:
    """Four thousand characters of it; the square of that would be seconds."""
    text = piece * (4_000 // len(piece))
    assert choice(text, LANE) in {None, *"ABCD"}
    assert yes_no(text) in {None, "yes", "no"}
