"""The referee: right answers pass, any other fails at its place, and a file that says nothing is an error, not a verdict.

tests/data/referee holds what engines would write about the golden run below. edgellm-*.json follow llm_inference of TensorRT
Edge-LLM 0.11 (its documentation and source; no device was at hand).
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import TESTS
from small_bundle import small_files, small_manifest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from drivekd.errors import BundleError, DataError
from drivekd.runtime.bundle.manifest import Generation
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.parity.referee import HEADER, RefereeReport, judge, until_end

DATA = TESTS / "data" / "referee"
END = "<e>"
WORDS = f"{END} signal is red green a van near the car ahead brake to stop keep speed".split()
PROMPTS = {"perception": "What is near?", "reasoning": "What matters most?", "planning": "At {ego_speed_mps} m/s, what next?"}
GOLDEN = {
    "perception": "signal is red a van is near the",
    "reasoning": f"the signal is red a car ahead {END}",
    "planning": f"brake to a stop {END} keep keep keep",  # the golden run goes on behind an end of turn
}
TIE = 3  # of perception


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def word_tokenizer() -> bytes:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer.to_str().encode()


def make_bundle(folder: Path, tokens: dict[str, list[int]], margins: np.ndarray, tokenizer: bytes) -> Bundle:
    """What a referee reads of a bundle: manifest, golden run, tokenizer."""
    golden = io.BytesIO()
    np.savez(golden, tokens=np.array(list(tokens.values())).T, margins=margins.astype(np.float32))
    manifest = dataclasses.replace(
        small_manifest(small_files()), prompts={name: PROMPTS[name] for name in tokens}, generation=Generation(8, 0)
    )
    return Bundle(folder, "sha256:0", manifest, {"golden.npz": golden.getvalue(), "tokenizer.json": tokenizer})


def clear_margins(rows: int, columns: int) -> np.ndarray:
    return np.ones((rows, columns))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    margins = clear_margins(8, 3)
    margins[TIE, 0] = 5e-4
    return make_bundle(tmp_path, {name: ids(text) for name, text in GOLDEN.items()}, margins, word_tokenizer())


def answers(**changed: str) -> dict[str, Any]:
    """The golden answers as tokens, some of them replaced; a text is its words."""
    said = {name: ids(text) for name, text in GOLDEN.items()}
    return {"answers": {name: {"tokens": ids(changed[name]) if name in changed else said[name]} for name in said}}


def judged(bundle: Bundle, value: Any) -> RefereeReport:
    path = bundle.path / "out.json"
    path.write_text(json.dumps(value))
    return judge(bundle, path)


RIGHT = ("correct.json", "correct-text.json", "edgellm-text.json", "edgellm-ids.json", "edgellm-logprobs.json")


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass_in_every_format(bundle: Bundle, name: str) -> None:
    report = judge(bundle, DATA / name)
    assert report.passed
    assert (report.tokens_expected, report.tokens_compared, report.tokens_agreeing) == (21, 20, 20)  # one tie
    assert [answer.difference for answer in report.answers] == [None] * 3
    assert {answer.judged_by for answer in report.answers} == {"text" if "text" in name else "tokens"}
    assert report.verdict == "passed: 20 of 20 compared tokens agree (100.0%), at least 99% expected"


@pytest.mark.parametrize("name", ["one-token.json", "one-token-text.json"])
def test_one_differing_token_fails_at_its_place(bundle: Bundle, name: str) -> None:
    report = judge(bundle, DATA / name)
    assert not report.passed
    assert (report.tokens_compared, report.tokens_agreeing) == (20, 18)  # "stop" and the end behind it
    perception, reasoning, planning = report.answers
    assert perception.difference is reasoning.difference is None
    found = planning.difference
    assert found is not None
    assert (found.position, found.expected_id, found.expected_text, found.margin) == (3, WORDS.index("stop"), "'stop'", 1.0)
    assert found.found_id == (None if "text" in name else WORDS.index("speed"))
    assert "speed" in found.found_text
    assert "first in planning, token 3: expected 13 'stop', found" in report.verdict


def test_garbage_and_failed_requests_fail(bundle: Bundle) -> None:
    garbage = judge(bundle, DATA / "garbage.json")
    assert not garbage.passed
    assert garbage.agreement == 0
    assert [answer.difference.position for answer in garbage.answers if answer.difference] == [0, 0, 0]
    failed = judge(bundle, DATA / "edgellm-failed.json")
    assert not failed.passed
    assert failed.answers[2].difference is not None
    assert failed.answers[2].difference.found_text.startswith("TensorRT Edge LLM cannot")


def test_an_answer_that_stops_early_fails_where_it_stops(bundle: Bundle) -> None:
    report = judge(bundle, DATA / "cut-short.json")
    assert not report.passed
    places = [(a.difference.position, a.difference.found_text) for a in report.answers if a.difference]
    assert places == [(5, "end of the answer"), (3, "end of the answer"), (2, "end of the answer")]
    nothing = judged(bundle, {"answers": {name: {"tokens": []} for name in GOLDEN}})
    assert (nothing.passed, nothing.tokens_agreeing) == (False, 0)
    silent = judged(bundle, {"answers": {name: {"text": ""} for name in GOLDEN}})
    assert (silent.passed, silent.tokens_agreeing) == (False, 0)


def test_going_on_behind_the_end_of_turn_fails(bundle: Bundle) -> None:
    report = judged(bundle, answers(planning="brake to a stop keep"))
    difference = report.answers[2].difference
    assert difference is not None
    assert (difference.position, difference.expected_id, difference.found_text) == (4, 0, "'keep'")
    text = judged(bundle, {"answers": {name: {"text": GOLDEN[name].split(f" {END}")[0] + " keep"} for name in GOLDEN}})
    assert [answer.difference is None for answer in text.answers] == [True, False, False]  # perception was recorded no further


def test_more_tokens_than_were_recorded_are_not_judged(bundle: Bundle) -> None:
    assert judged(bundle, answers(perception=GOLDEN["perception"] + " green green green")).passed


def test_the_end_of_turn_may_be_left_out(bundle: Bundle) -> None:
    assert judged(bundle, answers(planning="brake to a stop", reasoning="the signal is red a car ahead")).passed
    assert judged(bundle, answers(planning=f"brake to a stop {END}")).passed


def test_a_tie_counts_neither_for_nor_against(bundle: Bundle) -> None:
    """The engine took the other side of a tie, and what follows is another answer: neither is compared."""
    report = judged(bundle, answers(perception="signal is red the car green green green"))
    assert report.passed
    perception = report.answers[0]
    assert (perception.tokens_compared, perception.tokens_agreeing, perception.difference) == (TIE, TIE, None)
    before = judged(bundle, answers(perception="signal is green the car green green green"))
    assert not before.passed, "before the tie a difference is one"


def test_an_engine_whose_answers_all_leave_at_ties_was_not_judged(tmp_path: Path) -> None:
    margins = clear_margins(8, 3)
    margins[1:] = 0
    tokens = {name: ids(text) for name, text in GOLDEN.items()}
    bundle = make_bundle(tmp_path, tokens, margins, word_tokenizer())
    report = judged(bundle, answers())
    assert (report.tokens_compared, report.tokens_agreeing, report.passed) == (3, 3, False)
    assert report.verdict == "failed: only 3 of 21 golden tokens could be compared, the rest are ties or lie behind one"


@pytest.mark.parametrize("seed", range(20))
def test_a_change_anywhere_is_found_there_and_nowhere_else(bundle: Bundle, seed: int) -> None:
    """Property: any one token replaced by any other is named, unless it is the tie."""
    rng = np.random.default_rng(seed)
    row = int(rng.integers(3))
    name = list(GOLDEN)[row]
    words = GOLDEN[name].split()
    place = int(rng.integers(len(until_end(ids(GOLDEN[name]), 0))))
    words[place] = str(rng.choice([word for word in WORDS if word != words[place]]))
    report = judged(bundle, answers(**{name: " ".join(words)}))
    differences = [answer.difference for answer in report.answers]
    if (row, place) == (0, TIE):
        assert differences == [None] * 3
        return
    found = differences[row]
    assert found is not None
    assert found.position == place
    assert not report.passed
    assert [difference for index, difference in enumerate(differences) if index != row] == [None, None]


def test_half_a_character_is_no_difference(tmp_path: Path) -> None:
    """Byte-level tokens may end within a character; the text of the first of them is compared without its half."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({END: 0, **{letter: i + 1 for i, letter in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokens = {"planning": [*tokenizer.encode("é ü!").ids, 0]}
    bundle = make_bundle(tmp_path, tokens, clear_margins(7, 1), tokenizer.to_str().encode())
    assert judged(bundle, {"answers": {"planning": {"text": "é ü!"}}}).passed
    report = judged(bundle, {"answers": {"planning": {"text": "é ö!"}}})
    difference = report.answers[0].difference
    assert difference is not None
    assert difference.position == 4, "é is 0 and 1, the space 2; ü and ö share their first byte"


MALFORMED: dict[str, tuple[Any, str]] = {
    "a list": ([1], r"out.json: expected .*\"answers\".* found \[1\]"),
    "neither format": ({"result": 1}, "expected .*responses"),
    "no capability": ({"answers": {"perception": {"tokens": []}}}, "answers: no answer to 'reasoning'"),
    "unknown capability": ({"answers": {"steering": {"tokens": []}}}, "'steering' is no capability of this bundle"),
    "answer is a text": ({"answers": dict.fromkeys(GOLDEN, "brake")}, "answers.perception: expected an object, found 'brake'"),
    "neither tokens nor text": (
        {"answers": {key: {} for key in GOLDEN}},
        'perception: expected "tokens" .* found an empty object',
    ),
    "a token is a text": (
        {"answers": {key: {"tokens": [1, "x"]} for key in GOLDEN}},
        r"tokens\[1\]: expected a token id, found 'x'",
    ),
    "a token is true": (
        {"answers": {key: {"tokens": [True]} for key in GOLDEN}},
        r"tokens\[0\]: expected a token id, found True",
    ),
    "a token is negative": ({"answers": {key: {"tokens": [-1]} for key in GOLDEN}}, r"expected a token id, found -1"),
    "a text is a number": ({"answers": {key: {"text": 4} for key in GOLDEN}}, "perception.text: expected a text, found 4"),
    "no responses": ({"responses": []}, "expected 3, one for each of perception, reasoning, planning, found 0 responses"),
    "responses is an object": ({"responses": {}}, "expected 3, .* found an empty object"),
    "a response is a text": ({"responses": ["a", "b", "c"]}, r"responses\[0\]: expected an object, found 'a'"),
    "a response without text": ({"responses": [{}, {}, {}]}, r"responses\[0\].output_text: expected a text, found nothing"),
    "ids are no list": ({"responses": [{"output_text": "", "output_ids": 3}] * 3}, r"output_ids: expected a list of token ids"),
    "logprobs are flat": (
        {"responses": [{"output_text": "", "logprobs": [1]}] * 3},
        r"logprobs: expected one list of candidates",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_name_the_place(bundle: Bundle, name: str) -> None:
    value, message = MALFORMED[name]
    with pytest.raises(DataError, match=message):
        judged(bundle, value)


def test_files_that_hold_no_answers(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no answer to 'perception'"):
        judge(bundle, DATA / "no-answers.json")
    with pytest.raises(DataError, match=r"truncated.json: not valid JSON .* was the engine stopped while it wrote"):
        judge(bundle, DATA / "truncated.json")
    (tmp_path / "empty.json").touch()
    with pytest.raises(DataError, match="not valid JSON"):
        judge(bundle, tmp_path / "empty.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not valid JSON"):
        judge(bundle, tmp_path / "binary.json")
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            judge(bundle, path)


def test_answers_to_other_questions_are_refused(bundle: Bundle) -> None:
    value = json.loads((DATA / "edgellm-text.json").read_text())
    value["responses"].reverse()
    with pytest.raises(DataError, match=r"responses\[0\]: expected the answer to the perception question 'What is near\?'"):
        judged(bundle, value)
    del value["responses"][0]["messages"], value["responses"][1]["messages"], value["responses"][2]["messages"]
    assert not judged(bundle, value).passed


def test_a_token_outside_of_the_vocabulary_differs(bundle: Bundle) -> None:
    value = answers()
    value["answers"]["planning"]["tokens"][0] = 99
    difference = judged(bundle, value).answers[2].difference
    assert difference is not None
    assert (difference.found_id, difference.found_text) == (99, "no such token")


def test_a_bundle_without_a_golden_run_cannot_judge(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"golden.npz is missing, so there is nothing to judge by"):
        judge(dataclasses.replace(bundle, files={}), DATA / "correct.json")


def test_the_table_says_what_differs(bundle: Bundle) -> None:
    report = judge(bundle, DATA / "one-token.json")
    rows = report.rows()
    assert all(len(row) == len(HEADER) for row in rows)
    assert rows[0] == ["perception", "tokens", "7 of 7, 1 not compared", "none", "", "", "", "agrees"]
    assert rows[2] == ["planning", "tokens", "3 of 5", "token 3", "13 'stop'", "15 'speed'", "1", "DIFFERS"]
    stated = json.loads(json.dumps(report.to_json()))
    assert (stated["passed"], stated["tokens_agreeing"]) == (False, 18)
