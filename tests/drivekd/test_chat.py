"""The prompt path: the template's pieces, the same text and ids as transformers' own rendering, markers refused."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_run import QUESTIONS, TinyRun
from tokenizers import Tokenizer

from drivekd.chat import ChatFormat, PromptEncoder, chat_format_from_template
from drivekd.errors import CheckpointError, UsageError
from drivekd.models.tiny import CHAT_TEMPLATE, QWEN_CHAT_TEMPLATE, QWEN_SPECIAL_TOKENS, SPECIAL_TOKENS, train_tokenizer

# Qwen2.5-VL's shape: a system turn of its own, and the image markers written by the template.
SYSTEM_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}<|im_start|>system\nYou drive.<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{%- for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{ part['text'] }}{% endif %}"
    "{%- endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pieces(template: str, tokens_per_image: int = 4) -> ChatFormat:
    return chat_format_from_template(
        template,
        image_token="<IMG_CONTEXT>",
        image_start="<img>",
        image_end="</img>",
        tokens_per_image=tokens_per_image,
        source="MODEL",
    )


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer, pieces(CHAT_TEMPLATE))


# --- the template's pieces ------------------------------------------------------------------------------------------


def test_the_pieces_of_internvls_template() -> None:
    assert pieces(CHAT_TEMPLATE) == ChatFormat(
        before_images="<|im_start|>user\n",
        image_start="<img>",
        image_token="<IMG_CONTEXT>",
        image_end="</img>\n",
        after_question="<|im_end|>\n<|im_start|>assistant\n",
        end_of_turn="<|im_end|>",
        tokens_per_image=4,
    )


def test_a_system_turn_goes_before_the_images() -> None:
    chat = pieces(SYSTEM_TEMPLATE)
    assert chat.before_images.startswith("<|im_start|>system\nYou drive.<|im_end|>\n")
    assert chat.image_end == "</img>"
    assert chat.end_of_turn == "<|im_end|>"


def qwen_pieces(template: str) -> ChatFormat:
    return chat_format_from_template(
        template,
        image_token="<|image_pad|>",
        image_start="<|vision_start|>",
        image_end="<|vision_end|>",
        tokens_per_image=4,
        source="MODEL",
    )


def test_the_pieces_of_qwens_template() -> None:
    """It writes the markers around an image itself: they must not come twice."""
    assert qwen_pieces(QWEN_CHAT_TEMPLATE) == ChatFormat(
        before_images="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        image_start="<|vision_start|>",
        image_token="<|image_pad|>",
        image_end="<|vision_end|>",
        after_question="<|im_end|>\n<|im_start|>assistant\n",
        end_of_turn="<|im_end|>",
        tokens_per_image=4,
    )


@pytest.mark.parametrize("num_images", [1, 2, 6])
def test_qwens_prompt_is_the_text_that_transformers_renders(num_images: int) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_tokenizer(["What is it?"] * 20, [], 400, special_tokens=QWEN_SPECIAL_TOKENS)
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=QWEN_CHAT_TEMPLATE)
    content = [*({"type": "image"} for _ in range(num_images)), {"type": "text", "text": "What is it?"}]
    user, said = {"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "A."}]}
    prompts = PromptEncoder(tokenizer, qwen_pieces(QWEN_CHAT_TEMPLATE))
    asked = reference.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    text = prompts.chat.prefix(num_images) + prompts.chat.suffix("What is it?")
    assert text == asked.replace("<|image_pad|>", "<|image_pad|>" * 4)  # as Qwen2_5_VLProcessor replaces each marker
    answered = reference.apply_chat_template([user, said], tokenize=False)
    assert text + "A." + prompts.chat.end_of_turn + "\n" == answered.replace("<|image_pad|>", "<|image_pad|>" * 4)
    whole = reference(text, add_special_tokens=False)["input_ids"]
    assert prompts.prefix(num_images) + prompts.suffix("What is it?") == whole


def test_a_template_that_counts_its_images_is_read_without_the_counts() -> None:
    """Qwen's own has a namespace for it, off unless add_vision_id is passed."""
    counting = QWEN_CHAT_TEMPLATE.replace(
        "{{ '<|vision_start|>",
        "{% set seen.images = seen.images + 1 %}{% if add_vision_id %}Picture {{ seen.images }}: {% endif %}{{ '<|vision_start|>",
    )
    assert qwen_pieces("{% set seen = namespace(images=0) %}" + counting) == qwen_pieces(QWEN_CHAT_TEMPLATE)


def test_markers_that_differ_between_images_are_refused() -> None:
    numbered = QWEN_CHAT_TEMPLATE.replace("'<|vision_start|>", "loop.index | string + '<|vision_start|>")
    with pytest.raises(CheckpointError, match="different text behind the first and the last image"):
        qwen_pieces(numbered)


def test_the_format_survives_json() -> None:
    chat = pieces(CHAT_TEMPLATE)
    assert ChatFormat(**chat.to_json()) == chat


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0]['content'][2]['text'] }}<IMG_CONTEXT><IMG_CONTEXT>", "text before images"),
        ("{% for m in messages %}<IMG_CONTEXT>{{ m['content'][-1]['text'] }}{% endfor %}", "one marker for two images"),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}", "no image marker"),
        ("{% for m in messages %}{{ '<IMG_CONTEXT><IMG_CONTEXT>' + m['content'] }}{% endfor %}", "text-only"),
        ("{% for m in messages %}", "not a template"),
        ("{{ nothing.more }}", "undefined name"),
        (CHAT_TEMPLATE.replace("{{ content['text'] }}", "{{ content['text'] }} {{ content['text'] }}"), "question twice"),
        (CHAT_TEMPLATE.replace("'<IMG_CONTEXT>\n'", "'<IMG_CONTEXT>' + loop.index|string + '\n'"), "numbered images"),
        (CHAT_TEMPLATE.replace("message['role'] + '\n'", "message['role'] + '<IMG_CONTEXT>'"), "marker without image"),
    ],
    ids=lambda value: value if len(value) < 30 else "",
)
def test_a_template_that_is_not_images_then_text_is_refused(template: str, why: str) -> None:
    with pytest.raises(CheckpointError, match="MODEL: the chat template"):
        pieces(template)


# --- the same text and ids as transformers --------------------------------------------------------------------------


@pytest.mark.parametrize("num_images", [1, 2, 6])
@pytest.mark.parametrize("question", QUESTIONS.values())
def test_prompt_and_answer_are_the_text_that_transformers_renders(
    tiny_run: TinyRun, prompts: PromptEncoder, question: str, num_images: int
) -> None:
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast.from_pretrained(tiny_run.student)
    content = [*({"type": "image"} for _ in range(num_images)), {"type": "text", "text": question}]
    user = {"role": "user", "content": content}
    assistant = {"role": "assistant", "content": [{"type": "text", "text": "A. Red."}]}
    expanded = f"<img>{'<IMG_CONTEXT>' * 4}</img>"  # as InternVLProcessor replaces each marker

    asked = reference.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    text = prompts.chat.prefix(num_images) + prompts.chat.suffix(question)
    assert text == asked.replace("<IMG_CONTEXT>", expanded)
    answered = reference.apply_chat_template([user, assistant], tokenize=False)
    assert text + "A. Red." + prompts.chat.end_of_turn + "\n" == answered.replace("<IMG_CONTEXT>", expanded)

    ids = reference(text, add_special_tokens=False)["input_ids"]
    assert prompts.prefix(num_images) + prompts.suffix(question) == ids


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(["What", "7", "A.", "Ünï", "是", "e.g.", "0.005", "CAM_FRONT", "\n", "\t", "?"]), min_size=1)
)
def test_parts_tokenised_apart_are_the_ids_of_the_whole(prompts: PromptEncoder, words: list[str]) -> None:
    """The prefix's K/V is shared, so its ids must not depend on the question behind it."""
    question = " ".join(words).strip()  # records are stripped, too: a leading newline would merge with the image's own
    whole = prompts.chat.prefix(2) + prompts.chat.suffix(question)
    joined = prompts.prefix(2) + prompts.suffix(question)
    assert joined == prompts.tokenizer.encode(whole, add_special_tokens=False).ids


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_an_image_is_its_tokens_between_its_markers(prompts: PromptEncoder, num_images: int) -> None:
    ids = prompts.prefix(num_images)
    assert ids.count(prompts.image_token_id) == 4 * num_images
    assert ids.count(prompts.tokenizer.token_to_id("<img>")) == num_images
    assert prompts.image_token_id not in prompts.suffix("What?")


# --- answers --------------------------------------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40).filter(lambda text: not any(marker in text for marker in SPECIAL_TOKENS)))
def test_any_answer_comes_back(prompts: PromptEncoder, text: str) -> None:
    ids = prompts.answer(text)
    assert ids[-1] == prompts.end_of_turn_id
    assert prompts.end_of_turn_id not in ids[:-1]
    assert prompts.decode(ids) == text


@pytest.mark.parametrize("marker", SPECIAL_TOKENS)
def test_a_marker_in_a_text_is_refused(prompts: PromptEncoder, marker: str) -> None:
    """<|im_start|> would open a second turn, <IMG_CONTEXT> ask for an image that is not there."""
    for encode, what in ((prompts.suffix, "question"), (prompts.answer, "answer")):
        with pytest.raises(UsageError, match=f"the {what} contains the chat marker") as caught:
            encode(f"Look {marker} here")
        assert repr(marker) in str(caught.value)


def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match="no token '<image>'"):
        PromptEncoder(tiny_tokenizer, ChatFormat("", "", "<image>", "", "", "<|im_end|>", 4))
    with pytest.raises(CheckpointError, match="no token '</s>'"):
        PromptEncoder(tiny_tokenizer, ChatFormat("", "", "<IMG_CONTEXT>", "", "", "</s>", 4))
