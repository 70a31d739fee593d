"""Constraints over real byte-level tokenizers: whatever is chosen under the mask fits the schema."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from structured_cases import ANSWERS
from tiny_run import make_tokenizer
from tokenizers import Tokenizer

from drivekd.errors import RunnerError, UsageError
from drivekd.runtime.answers.cut_answers import close_answer
from drivekd.runtime.answers.grammar import Constraint, Grammars
from drivekd.runtime.answers.schemas import default_schemas, valid_answer

CAMERAS = ("CAM_FRONT", "CAM_BACK")
SCHEMAS = default_schemas(CAMERAS)
PADDING = 70  # rows of a model's vocabulary behind the tokenizer's last: released models have some hundred
CAPABILITIES = list(SCHEMAS)


@pytest.fixture(scope="module", params=["internvl", "qwen2_5_vl"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make_tokenizer(request.param)


def end_of_turn_id(tokenizer: Tokenizer) -> int:
    found = tokenizer.token_to_id("<|im_end|>")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    size = tokenizer.get_vocab_size() + PADDING
    return Grammars(tokenizer.to_str().encode(), size, end_of_turn_id(tokenizer), SCHEMAS)


def allowed(constraint: Constraint, vocab_size: int) -> NDArray[np.bool_]:
    logits = np.zeros(vocab_size, np.float32)
    constraint.mask(logits)
    return np.isfinite(logits)


def random_answer(constraint: Constraint, tokenizer: Tokenizer, seed: int, limit: int) -> tuple[str, list[int]]:
    """Tokens drawn from all that the mask allows, until the end or the limit."""
    rng = np.random.default_rng(seed)
    tokens = constraint.opening()
    while not constraint.finished and len(tokens) < limit:
        mask = allowed(constraint, tokenizer.get_vocab_size() + PADDING)
        assert not mask[tokenizer.get_vocab_size() :].any(), "padding rows are no tokens"
        token = int(rng.choice(np.flatnonzero(mask)))
        constraint.accept(token)
        tokens += [token, *constraint.forced()]
    return tokenizer.decode(tokens, skip_special_tokens=True), tokens


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_whatever_is_drawn_under_the_mask_is_an_answer(grammars: Grammars, tokenizer: Tokenizer, capability: str) -> None:
    schema, ended = SCHEMAS[capability], 0
    for seed in range(25):
        text, tokens = random_answer(grammars.constraint(capability), tokenizer, seed, limit=1500)
        assert end_of_turn_id(tokenizer) not in tokens
        closed = close_answer(schema, text)
        assert valid_answer(schema, closed) is None
        if closed["complete"]:
            ended += 1
            assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) or "0." in text or "e" in text
    assert ended >= 5, "most answers come to an end"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_one_token_is_judged_as_the_mask_judges_it(grammars: Grammars, tokenizer: Tokenizer, capability: str) -> None:
    size = tokenizer.get_vocab_size() + PADDING
    rng, constraint = np.random.default_rng(1), grammars.constraint(capability)
    constraint.opening()
    for _ in range(60):
        if constraint.finished:
            break
        mask = allowed(constraint, size)
        assert [constraint.allows(token) for token in range(size)] == mask.tolist()
        constraint.accept(int(rng.choice(np.flatnonzero(mask))))
        constraint.forced()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_an_answer_can_be_said(grammars: Grammars, tokenizer: Tokenizer, capability: str) -> None:
    """The tokenizer's own ids of a right answer pass, and nothing is allowed behind it."""
    text = json.dumps(ANSWERS[capability], separators=(",", ":"), ensure_ascii=False)
    constraint = grammars.constraint(capability)
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        assert allowed(constraint, tokenizer.get_vocab_size() + PADDING)[token]
        assert not constraint.finished
        constraint.accept(token)
    assert constraint.finished
    assert constraint.forced() == []


@pytest.mark.parametrize(
    "text",
    [
        '{"r',
        "{ ",
        '{"actions":[]',
        '{"actions":["f',
        '{"actions":["stop","st',
        '{"actions":["stop","yield","y',
        '{"actions":["stop","yield","turn_left",',
        '{"actions":["stop"],"reason":"\\u',
        '{"actions":["stop"],"reason":"\n',
        '{"actions":["stop"],"reason":null,"probability":2',
        '{"actions":["stop"],"reason":null,"probability":-',
        '{"actions":["stop"],"reason":null,"probability":0.255',
        '{"actions":["stop"],"reason":null,"probability":1,"complete":f',
        '{"actions":["stop"],"reason":"' + 121 * "x",
    ],
)
def test_what_does_not_fit_cannot_be_said(grammars: Grammars, tokenizer: Tokenizer, text: str) -> None:
    constraint = grammars.constraint("planning")
    *allowed_tokens, last = single_bytes(tokenizer, text)
    for token in allowed_tokens:
        constraint.accept(token)
    with pytest.raises(RunnerError, match="grammar"):
        constraint.accept(last)


def single_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a byte: a byte-level vocabulary has all of them."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    ids = [tokenizer.token_to_id(letter) for word, _ in words for letter in word]
    assert None not in ids
    return [index for index in ids if index is not None]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_is_forced_is_the_only_way_to_go_on(grammars: Grammars, tokenizer: Tokenizer, capability: str) -> None:
    """At every forced token, the text of every allowed token begins alike: no choice was taken from the model."""
    constraint, twin = grammars.constraint(capability), grammars.constraint(capability)
    text, said = "", json.dumps(ANSWERS[capability], separators=(",", ":"), ensure_ascii=False)
    num_forced = 0
    while not constraint.finished:
        forced = constraint.forced()
        forced_text = tokenizer.decode(forced)
        assert said[len(text) :].startswith(forced_text)
        for index, token in enumerate(forced):
            rest = tokenizer.decode(forced[index:])
            for other in np.flatnonzero(allowed(twin, tokenizer.get_vocab_size() + PADDING)):
                word = tokenizer.decode([int(other)])
                assert rest.startswith(word) or word.startswith(rest)
            twin.accept(token)
        text, num_forced = text + forced_text, num_forced + len(forced)
        if constraint.finished:
            break
        token = single_bytes(tokenizer, said[len(text)])[0]  # never more than the text says
        constraint.accept(token)
        twin.accept(token)
        text += said[len(text)] if said[len(text)].isascii() else ""
        if not said[len(text)].isascii():
            return  # characters of several bytes: the example's rest is like its beginning
    assert text == said
    assert num_forced > 0


def test_the_opening_is_the_same_every_time(grammars: Grammars, tokenizer: Tokenizer) -> None:
    openings = [grammars.constraint("planning").opening() for _ in range(3)]
    assert openings[0] == openings[1] == openings[2]
    assert tokenizer.decode(openings[0]).startswith('{"actions"')


def test_constraints_do_not_disturb_each_other(grammars: Grammars, tokenizer: Tokenizer) -> None:
    first = grammars.constraint("planning")
    first.opening()
    alone, _ = random_answer(grammars.constraint("planning"), tokenizer, 3, limit=60)
    second = grammars.constraint("planning")
    first.accept(single_bytes(tokenizer, "n")[0])
    assert random_answer(second, tokenizer, 3, limit=60)[0] == alone


def test_a_capability_without_a_schema_is_refused(grammars: Grammars) -> None:
    with pytest.raises(UsageError, match=r"'question' has no schema in this bundle.*perception, reasoning, planning"):
        grammars.constraint("question")


def test_a_tokenizer_that_is_none_is_refused() -> None:
    with pytest.raises(RunnerError, match=r"tokenizer\.json"):
        Grammars(b'{"model": 1}', 10, 1, SCHEMAS).warm_up()


@pytest.fixture(scope="module")
def nameless(tokenizer: Tokenizer) -> Grammars:
    """Of a bundle that names no cameras."""
    size = tokenizer.get_vocab_size()
    return Grammars(tokenizer.to_str().encode(), size, end_of_turn_id(tokenizer), default_schemas(()))


def test_a_camera_is_one_of_the_frames(nameless: Grammars, tokenizer: Tokenizer) -> None:
    """A pretrained model filled the 40 characters that were free here with digits."""
    for cameras in (("roof",), ("rear", "roof"), ("rear", "roof")):
        constraint = nameless.constraint("perception", cameras)
        for token in single_bytes(tokenizer, '{"objects":[{"camera":"roof"'):
            constraint.accept(token)
        assert constraint.schema == default_schemas(cameras)["perception"]
    constraint = nameless.constraint("perception", ("roof",))
    *opening, digit = single_bytes(tokenizer, '{"objects":[{"camera":"1')
    for token in opening:
        constraint.accept(token)
    with pytest.raises(RunnerError, match="grammar"):
        constraint.accept(digit)


def test_a_bundles_own_cameras_stay(grammars: Grammars) -> None:
    assert grammars.constraint("perception", ("roof",)).schema == SCHEMAS["perception"]


def test_before_the_first_frame_any_name_may_be_said(nameless: Grammars, tokenizer: Tokenizer) -> None:
    constraint = nameless.constraint("perception")
    for token in single_bytes(tokenizer, '{"objects":[{"camera":"roof"'):
        constraint.accept(token)
